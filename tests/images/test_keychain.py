"""Docker's store of credentials: what it may look like, and what its helpers may do wrong."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from ramet.images.errors import CredentialsUnreadable
from ramet.images.registry.config import Credentials
from ramet.images.registry.keychain import CONFIG_BYTES_MAX, Keychain

pytestmark = pytest.mark.anyio

REGISTRY = "registry.example:5000"
HUB = "https://index.docker.io/v1/"


def login(user: str = "me", password: str = "hidden") -> dict[str, str]:
    """Return what `docker login` writes."""
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write_config(folder: Path, **config: Any) -> Keychain:
    (folder / "config.json").write_text(json.dumps(config))
    return Keychain(folder)


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for credential helpers, in which this process finds them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def write_helper(helpers: Path, script: str, name: str = "test") -> None:
    program = helpers / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


# Without helpers


async def test_without_a_config_there_are_no_credentials(tmp_path: Path) -> None:
    for folder in (None, tmp_path, tmp_path / "absent"):
        assert await Keychain(folder).find(REGISTRY) is None


@pytest.mark.parametrize("config", [{}, {"auths": None}, {"auths": {REGISTRY: {}}}, {"credsStore": ""}])
async def test_a_config_may_say_nothing(tmp_path: Path, config: dict[str, Any]) -> None:
    assert await write_config(tmp_path, **config).find(REGISTRY) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (login(), Credentials("me", "hidden")),
        (login("me", "a:b"), Credentials("me", "a:b")),
        ({"username": "me", "password": "hidden"}, Credentials("me", "hidden")),
        ({**login("<token>", ""), "identitytoken": "id"}, Credentials("<token>", "", identity_token="id")),
        ({"registrytoken": "direct"}, Credentials(registry_token="direct")),
    ],
)
async def test_each_form_of_a_login_is_read(
    tmp_path: Path, entry: dict[str, str], expected: Credentials
) -> None:
    keychain = write_config(tmp_path, auths={"other.example": login("x", "y"), REGISTRY: entry})
    assert await keychain.find(REGISTRY) == expected


@pytest.mark.parametrize("name", [REGISTRY, f"https://{REGISTRY}", f"https://{REGISTRY}/v1/"])
async def test_a_registry_is_found_by_its_host(tmp_path: Path, name: str) -> None:
    keychain = write_config(tmp_path, auths={name: login()})
    assert await keychain.find(REGISTRY) == Credentials("me", "hidden")
    for other in ("registry.example", "registry.example:5001", "sub.registry.example:5000", "docker.io"):
        assert await keychain.find(other) is None


@pytest.mark.parametrize("name", [HUB, "docker.io", "index.docker.io", "registry-1.docker.io"])
async def test_docker_hub_has_several_names(tmp_path: Path, name: str) -> None:
    assert await write_config(tmp_path, auths={name: login()}).find("docker.io") == Credentials(
        "me", "hidden"
    )


async def test_a_login_holds_at_once(tmp_path: Path) -> None:
    keychain = write_config(tmp_path)
    assert await keychain.find(REGISTRY) is None
    write_config(tmp_path, auths={REGISTRY: login()})
    assert await keychain.find(REGISTRY) == Credentials("me", "hidden")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '"text"',
        "[" * 100_000,
        "\udcff",
        " " * (CONFIG_BYTES_MAX + 1),
        '{"auths": []}',
        '{"auths": {"registry.example:5000": 7}}',
        '{"auths": {"registry.example:5000": {"auth": 7}}}',
        '{"auths": {"registry.example:5000": {"auth": "!"}}}',
        '{"auths": {"registry.example:5000": {"auth": "/w=="}}}',
        '{"auths": {"registry.example:5000": {"username": "\\ud800", "password": "x"}}}',
        '{"auths": {"registry.example:5000": {"identitytoken": "\\udfff"}}}',
        '{"credHelpers": ["registry.example:5000"]}',
        '{"credsStore": 7}',
        '{"credsStore": "../../bin/sh"}',
        '{"credsStore": "a b"}',
    ],
)
async def test_a_config_that_is_none_of_dockers_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(CredentialsUnreadable) as caught:
        await Keychain(tmp_path).find(REGISTRY)
    assert caught.value.code == "credentials_unreadable"


async def test_a_config_that_is_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CredentialsUnreadable):
        await Keychain(tmp_path).find(REGISTRY)


async def test_a_pipe_for_a_config_does_not_hang_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CredentialsUnreadable):
        await Keychain(tmp_path).find(REGISTRY)


def test_a_secret_is_not_printed() -> None:
    credentials = Credentials("me", "hidden", "hidden", "hidden")
    assert "hidden" not in f"{credentials} {credentials!r}"


# Helpers

ANSWER = """read name; echo "{\\"Username\\": \\"$name\\", \\"Secret\\": \\"$1\\"}" """


@pytest.mark.parametrize(
    "config",
    [
        {"credsStore": "test"},
        {"credHelpers": {REGISTRY: "test"}},
        {"credHelpers": {REGISTRY: "test"}, "credsStore": "absent", "auths": {REGISTRY: login()}},
    ],
)
async def test_a_helper_is_asked_for_the_registry(
    tmp_path: Path, helpers: Path, config: dict[str, Any]
) -> None:
    write_helper(helpers, ANSWER)
    assert await write_config(tmp_path, **config).find(REGISTRY) == Credentials(REGISTRY, "get")


@pytest.mark.parametrize("key", ["docker.io", HUB])
async def test_docker_hub_has_its_old_name_with_helpers(tmp_path: Path, helpers: Path, key: str) -> None:
    write_helper(helpers, ANSWER)
    keychain = write_config(tmp_path, credHelpers={key: "test"})
    assert await keychain.find("docker.io") == Credentials(HUB, "get")


async def test_a_helper_may_answer_with_an_identity_token(tmp_path: Path, helpers: Path) -> None:
    write_helper(helpers, """echo '{"Username": "<token>", "Secret": "id"}'""")
    assert await write_config(tmp_path, credsStore="test").find(REGISTRY) == Credentials(identity_token="id")


@pytest.mark.parametrize(
    "script", ["echo credentials not found in native keychain; exit 1", """echo '{"Username": ""}'"""]
)
async def test_what_a_helper_does_not_have_may_be_in_the_config(
    tmp_path: Path, helpers: Path, script: str
) -> None:
    write_helper(helpers, script)
    keychain = write_config(tmp_path, credsStore="test", auths={REGISTRY: login()})
    assert await keychain.find(REGISTRY) == Credentials("me", "hidden")


async def test_a_helper_need_not_read(tmp_path: Path, helpers: Path) -> None:
    write_helper(helpers, """exec 0<&-; echo '{"Username": "a", "Secret": "b"}'""")
    assert await write_config(tmp_path, credsStore="test").find(REGISTRY) == Credentials("a", "b")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo the vault is locked; exit 3", "exit code 3"),
        ("kill -9 $$", "exit code -9"),
        ("echo not json", "JSON"),
        ("echo '[]'", "object"),
        ("""echo '{"Username": 7, "Secret": "b"}'""", "without a name and secret"),
        ("""printf '%s' '{"Username": "a", "Secret": "\\ud800"}'""", "without a name and secret"),
        ("yes", "more than"),
    ],
)
async def test_a_helper_that_fails_is_told_by_name(
    tmp_path: Path, helpers: Path, script: str, says: str
) -> None:
    write_helper(helpers, script)
    with pytest.raises(CredentialsUnreadable, match=says) as caught:
        await write_config(tmp_path, credsStore="test").find(REGISTRY)
    if "object" not in says:
        assert "docker-credential-test" in caught.value.message
    assert "vault" not in caught.value.message  # Its output may be a secret.


async def test_a_helper_that_is_not_installed_is_told_with_what_to_do(tmp_path: Path, helpers: Path) -> None:
    with pytest.raises(CredentialsUnreadable) as caught:
        await write_config(tmp_path, credsStore="absent").find(REGISTRY)
    assert "docker-credential-absent" in caught.value.remedy


@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 1000",
        "sleep 1000 & wait",
        "sleep 1000 & echo x",
        "exec 1>&-; sleep 1000",
        "while echo x; do sleep 0.02; done",
    ],
)
async def test_a_helper_that_stalls_is_ended_with_all_it_started(
    tmp_path: Path, helpers: Path, script: str
) -> None:
    os.mkfifo(tmp_path / "alive")
    # Each of its processes has the pipe open for writing; its end says that none is left.
    write_helper(helpers, f"exec 3>'{tmp_path}/alive'\n{script}")
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_config(tmp_path, credsStore="test")
        with pytest.raises(CredentialsUnreadable, match="did not answer"):
            await Keychain(tmp_path, helper_timeout_s=1.0).find(REGISTRY)
        os.set_blocking(reader, True)
        while os.read(reader, 100):
            pass
    finally:
        os.close(reader)


async def test_a_helper_ends_with_the_pull_that_waits_for_it(tmp_path: Path, helpers: Path) -> None:
    os.mkfifo(tmp_path / "alive")
    write_helper(helpers, f"exec 3>'{tmp_path}/alive'\necho >&3\nexec sleep 1000")
    write_config(tmp_path, credsStore="test")
    async with anyio.create_task_group() as group:
        group.start_soon(Keychain(tmp_path).find, REGISTRY)
        with await anyio.to_thread.run_sync((tmp_path / "alive").open) as reader:
            assert await anyio.to_thread.run_sync(reader.readline) == "\n"
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                assert await anyio.to_thread.run_sync(reader.read) == ""
