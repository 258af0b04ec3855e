"""A served stand-in for every test of the API: one server for all, emptied for each."""

from collections.abc import Iterator

import httpx
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


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    """Yield a client of the server's unix socket."""
    transport = httpx.HTTPTransport(uds=str(served.socket))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        yield client
