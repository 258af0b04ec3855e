"""Which connections a guest has: a guest here is a namespace behind a port of the bridge, and TCP is real."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address

import anyio
import anyio.lowlevel
import pytest

from ramet.linux import conntrack
from ramet.linux.conntrack import Connection
from ramet.net import flows
from ramet.net.bridge import Bridge, BridgeConfig
from ramet.net.firewall import Firewall
from ramet.net.flows import Flows
from ramet.net.slots import Endpoint
from tests.net.test_reach import Guest, Make, Run, bound
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
GATEWAY = IPv4Address("10.100.0.1")
PORT = 8080


class Watched:
    """A guest, who is connected to it, and which addresses were said to have changed."""

    def __init__(self, guest: Guest, found: Flows) -> None:
        self.guest, self.flows = guest, found
        self.changed: list[IPv4Address] = []
        self.known = 0

    @property
    def ip(self) -> IPv4Address:
        return self.guest.endpoint.ip

    def note_known(self) -> None:
        self.known += 1

    @property
    def inbound(self) -> set[Connection]:
        return set(self.flows.inbound(self.ip))

    def listen(self) -> socket.socket:
        server = bound(self.guest.namespace.socket(socket.SOCK_STREAM), str(self.ip), PORT)
        server.listen()
        return server


@pytest.fixture
async def watched(ip: Run, new_namespace: Make) -> AsyncIterator[Watched]:
    config = BridgeConfig(allow_host_ports=(("tcp", PORT),))
    bridge = await Bridge(config).ensure()
    firewall = Firewall(config)
    await firewall.open(None)
    endpoint = Endpoint(2, IPv4Address("10.100.0.2"))
    await firewall.admit([endpoint])
    there = Watched(Guest(endpoint, new_namespace(), ip, bridge), Flows(config.subnet))
    async with anyio.create_task_group() as group:
        group.start_soon(there.flows.run, there.changed.append, there.note_known)
        await until(lambda: there.known == 1)
        yield there
        group.cancel_scope.cancel()
    await firewall.close()


async def connect(server: socket.socket, ip: IPv4Address) -> tuple[socket.socket, socket.socket]:
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    async with asyncio.timeout(20):
        await loop.sock_connect(client, (str(ip), PORT))
        accepted, _ = await loop.sock_accept(server)
    return client, accepted


async def test_a_connection_is_there_from_its_beginning_to_its_end(watched: Watched) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(watched.listen())
        first = await connect(server, watched.ip)
        second = await connect(server, watched.ip)
        await until(lambda: len(watched.inbound) == 2)
        assert {one.responder for one in watched.inbound} == {(watched.ip, PORT)}
        ports = {client.getsockname()[1] for client, _ in (first, second)}
        assert {one.client for one in watched.inbound} == {(GATEWAY, port) for port in ports}
        for end in first:
            end.close()
        await until(lambda: len(watched.inbound) == 1)
        for end in second:
            end.close()
        await until(lambda: not watched.inbound)
        assert watched.ip in watched.changed


async def test_one_that_is_only_being_opened_counts(watched: Watched) -> None:
    watched.guest.namespace.ip("link set eth0 down")  # So nobody answers.
    with socket.socket() as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect((str(watched.ip), PORT))
        await until(lambda: len(watched.inbound) == 1)


async def test_what_the_guest_opens_is_told_apart(watched: Watched) -> None:
    client = watched.guest.namespace.socket(socket.SOCK_STREAM)
    with client, socket.create_server((str(GATEWAY), PORT)):
        client.setblocking(False)
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().sock_connect(client, (str(GATEWAY), PORT))
        await until(lambda: len(watched.flows.outbound(watched.ip)) == 1)
        assert not watched.inbound


async def test_connections_that_were_there_before_are_known_at_once(watched: Watched) -> None:
    with watched.listen() as server:
        ends = await connect(server, watched.ip)
        await until(lambda: len(watched.inbound) == 1)
        other = Flows(watched.flows._subnet)
        known = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(other.run, lambda address: None, known.set)
            await known.wait()
            assert other.inbound(watched.ip) == watched.inbound
            group.cancel_scope.cancel()
        for end in ends:
            end.close()


async def test_what_the_kernel_dropped_is_looked_up(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack.ConnectionEvents, "read", lambda self: _drained(self))
    with watched.listen() as server:
        ends = await connect(server, watched.ip)
        await until(lambda: len(watched.inbound) == 1)
        for end in ends:
            end.close()
        await until(lambda: not watched.inbound)


async def test_what_begins_while_all_are_listed_is_not_lost(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is older than it by then, and must not undo it."""
    real, loop = conntrack.list_connections, asyncio.get_running_loop()
    with watched.listen() as server:
        made: list[tuple[socket.socket, socket.socket]] = []

        def list_late() -> list[conntrack.Seen]:
            older = real()
            if not made:
                made.append(asyncio.run_coroutine_threadsafe(connect(server, watched.ip), loop).result(20))
            return older

        monkeypatch.setattr(flows, "list_connections", list_late)
        watched.flows._is_behind.set()
        await until(lambda: bool(made))
        await until(lambda: len(watched.inbound) == 1)
        known = watched.known
        watched.flows._is_behind.set()
        await until(lambda: not watched.flows._is_behind.is_set())
        await until(lambda: len(watched.inbound) == 1)
        assert watched.known == known == 1
        for end in made[0]:
            end.close()


def _drained(events: conntrack.ConnectionEvents) -> None:
    """Read as if the kernel had dropped what was read."""
    events._socket.recv(1 << 18)


async def test_a_kernel_that_does_not_tell_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "RETRY_S", 0.01)
    real, tries = conntrack.list_connections, []

    def list_at_last() -> list[conntrack.Seen]:
        tries.append(found.error)
        if len(tries) < 3:
            raise OSError("no such thing")
        return real()

    monkeypatch.setattr(flows, "list_connections", list_at_last)
    found, known = Flows(BridgeConfig().subnet), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(found.run, lambda address: None, known.set)
        await known.wait()
        assert tries == ["not looked at yet", "no such thing", "no such thing"]
        assert not found.error
        group.cancel_scope.cancel()
