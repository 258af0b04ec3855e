"""A served stand-in for every test of the command line: one server for all, emptied for each."""

from collections.abc import Callable, Iterator

import pytest

from ramet.cli.main import run
from tests.api.stand_in import Served, serve

Ramet = Callable[..., tuple[int, str, str]]
"""A command of ours in this process: its words, and its exit code, stdout and stderr."""


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with serve() as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    server.reset()
    return server


@pytest.fixture
def ramet(served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ramet:
    monkeypatch.setenv("RAMET_HOST", served.unix_url)

    def call(*arguments: str) -> tuple[int, str, str]:
        exit_code = run(arguments)
        out, err = capfd.readouterr()
        return exit_code, out, err

    return call
