"""Every test here runs in a network namespace of its own, and may make more."""

import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.net.namespaces import Namespace, own_namespace, run_ip


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    """Put the test into a new namespace that has a loopback interface and nothing else."""
    with own_namespace():
        yield


@pytest.fixture
def new_namespace() -> Iterator[Callable[[], Namespace]]:
    """Return what makes further namespaces, which go with the test."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        made[-1].ip("link set lo up")
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()


@pytest.fixture
def ip() -> Callable[[str], str]:
    """Return what runs `ip` in the test's own namespace."""
    return run_ip


@pytest.fixture
def nft() -> Callable[[str], str]:
    """Return what runs one `nft` command in the test's own namespace, apart from the firewall's nft."""

    def run(arguments: str) -> str:
        done = subprocess.run(["nft", "-s", arguments], check=True, capture_output=True, text=True)
        return done.stdout

    return run


@pytest.fixture
def packet_socket() -> Iterator[Callable[[str], socket.socket]]:
    """Return what makes a socket that sees all frames an interface of the test's namespace takes in."""
    made: list[socket.socket] = []

    def make(interface: str) -> socket.socket:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        listener.bind((interface, 0))
        listener.setblocking(False)
        made.append(listener)
        return made[-1]

    yield make
    for listener in made:
        listener.close()
