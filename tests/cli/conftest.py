"""A served stand-in for every test of the command line: one server for all, emptied for each."""

from collections.abc import Iterator

import pytest

from tests.api.stand_in import Served, serve


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with serve() as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    server.reset()
    return server
