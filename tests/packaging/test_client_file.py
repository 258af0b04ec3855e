"""The command line's own file: where the server is, and a token that goes nowhere else."""

from pathlib import Path

import pytest

from ramet.client import Endpoint
from ramet.client.endpoint import DEFAULT_HOST
from ramet.core.errors import Invalid


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the file is looked for; nothing else is set."""
    for name in ("RAMET_HOST", "RAMET_API_KEY", "RAMET_CLI_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ramet").mkdir()
    place = tmp_path / "ramet/cli.toml"
    place.write_text('host = "http://127.0.0.1:4973"\napi_key = "kept"\n')
    return place


def test_host_and_token_come_from_the_file(file: Path) -> None:
    endpoint = Endpoint.from_environment()
    assert (str(endpoint), endpoint.api_key) == ("http://127.0.0.1:4973", "kept")


def test_without_the_file_it_is_the_socket(file: Path) -> None:
    file.unlink()
    endpoint = Endpoint.from_environment()
    assert (str(endpoint), endpoint.api_key) == (DEFAULT_HOST, None)


@pytest.mark.parametrize(
    ("host", "token"),
    [
        ("http://127.0.0.1:4973", "kept"),
        ("http://127.0.0.1:4973/", "kept"),
        ("https://127.0.0.1:4973", None),
        ("http://127.0.0.1:4974", None),
        ("http://elsewhere:4973", None),
        ("unix:///run/ramet/api.sock", None),
    ],
)
def test_the_token_goes_to_its_own_host_only(
    file: Path, monkeypatch: pytest.MonkeyPatch, host: str, token: str | None
) -> None:
    assert Endpoint.from_environment(host).api_key == token
    monkeypatch.setenv("RAMET_HOST", host)
    assert Endpoint.from_environment().api_key == token


def test_the_environments_token_comes_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_API_KEY", "mine")
    assert Endpoint.from_environment().api_key == "mine"
    assert Endpoint.from_environment("http://elsewhere").api_key == "mine"


@pytest.mark.parametrize(
    "text", ["host", "host = 1", 'host = "ftp://x"', "api_key = []", "\x00", "host = " + "[" * 5000]
)
def test_a_file_that_cannot_be_understood_is_an_error_with_a_remedy(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Invalid) as caught:
        Endpoint.from_environment()
    assert caught.value.remedy


def test_a_file_that_cannot_be_understood_is_not_read_where_nothing_of_it_is_needed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("host")
    monkeypatch.setenv("RAMET_API_KEY", "mine")
    assert Endpoint.from_environment("http://elsewhere").api_key == "mine"
