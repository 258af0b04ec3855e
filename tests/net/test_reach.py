"""Whom a guest reaches. A guest here is a namespace behind a port of the bridge that has a slot's name.

Nothing waits to see that something does not arrive: behind each forbidden datagram comes a permitted one on
the same way, and it must be the first to be received.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address

import pytest

from ramet.linux import netlink
from ramet.net.bridge import Bridge, BridgeConfig, BridgeFacts
from ramet.net.firewall import Firewall
from ramet.net.slots import Endpoint
from tests.net.namespaces import Namespace

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
GATEWAY = "10.100.0.1"
HOST = "192.0.2.1"  # Our address on the uplink.
OUTSIDE = "192.0.2.9"
LAN = "198.51.100.9"  # Behind an interface that is not the uplink.
METADATA = "169.254.169.254"
CLOSED, OPEN = 4973, 53

Make = Callable[[], Namespace]
Run = Callable[[str], str]


def bound(made: socket.socket, address: str, port: int) -> socket.socket:
    made.bind((address, port))
    made.setblocking(False)
    return made


def udp_server(address: str, port: int) -> socket.socket:
    return bound(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), address, port)


async def datagram(server: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(server, 100)


async def first_received(server: socket.socket, data: bytes, address: str, port: int) -> bytes:
    """Send from the host until something arrives: a port that has just come up may drop the first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        async with asyncio.timeout(10):
            while True:
                client.sendto(data, (address, port))
                try:
                    async with asyncio.timeout(0.2):
                        return await asyncio.get_running_loop().sock_recv(server, 100)
                except TimeoutError:
                    continue


class Guest:
    """A namespace with one interface, configured as the agent configures a guest's."""

    def __init__(self, endpoint: Endpoint, namespace: Namespace, ip: Run, bridge: BridgeFacts) -> None:
        self.endpoint, self.namespace = endpoint, namespace
        name = endpoint.tap_name
        ip(f"link add {name} type veth peer name eth0 netns {namespace.path}")
        index = netlink.interface_index(name)
        with netlink.RouteSocket() as route:
            route.apply([netlink.enslave(index, bridge.index, mtu_bytes=1500, has_ipv6=False)])
            route.apply(
                [
                    netlink.add_forwarding(index, endpoint.mac),
                    netlink.add_neighbour(bridge.index, endpoint.ip, endpoint.mac),
                    netlink.open_port(index, learning=False),
                ]
            )
        namespace.ip(f"link set eth0 address {endpoint.mac} up")
        namespace.ip(f"addr add {endpoint.ip}/16 dev eth0")
        namespace.ip(f"route add default via {GATEWAY}")

    def send(self, payload: bytes, address: str, port: int) -> None:
        with self.namespace.socket(socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            client.sendto(payload, (address, port))

    def server(self, port: int) -> socket.socket:
        return bound(self.namespace.socket(socket.SOCK_DGRAM), str(self.endpoint.ip), port)


class Host:
    """The bridge in the test's namespace, a namespace behind the uplink and one behind another interface."""

    def __init__(self, ip: Run, make: Make) -> None:
        self.ip, self.make = ip, make
        self.outside, self.lan = make(), make()
        for name, own, far, namespace in (
            ("up0", HOST, OUTSIDE, self.outside),
            ("lan0", "198.51.100.1", LAN, self.lan),
        ):
            ip(f"link add {name} type veth peer name far0 netns {namespace.path}")
            ip(f"addr add {own}/24 dev {name}")
            ip(f"link set {name} up")
            namespace.ip(f"addr add {far}/24 dev far0")
            namespace.ip("link set far0 up")
            namespace.ip(f"route add 10.100.0.0/16 via {own}")
        self.outside.ip(f"addr add {METADATA}/32 dev lo")
        ip(f"route add default via {OUTSIDE}")
        ip(f"route add 169.254.0.0/16 via {OUTSIDE}")

    async def open(self) -> None:
        config = BridgeConfig(allow_host_ports=(("udp", OPEN), ("tcp", OPEN)))
        self.bridge = await Bridge(config).ensure()
        self.firewall = Firewall(config)
        await self.firewall.open(self.bridge.uplink)

    async def guest(self, slot: int) -> Guest:
        endpoint = Endpoint(slot, IPv4Address(f"10.100.0.{slot}"))
        await self.firewall.admit([endpoint])
        return Guest(endpoint, self.make(), self.ip, self.bridge)


@pytest.fixture
async def host(ip: Run, new_namespace: Make) -> AsyncIterator[Host]:
    host = Host(ip, new_namespace)
    await host.open()
    yield host
    await host.firewall.close()


async def test_the_default_route_names_the_uplink(host: Host) -> None:
    assert host.bridge.uplink == "up0"


async def test_a_guest_reaches_the_uplink_under_the_hosts_address(host: Host) -> None:
    guest = await host.guest(2)
    loop = asyncio.get_running_loop()
    server = bound(host.outside.socket(socket.SOCK_STREAM), OUTSIDE, 80)
    server.listen()
    client = guest.namespace.socket(socket.SOCK_STREAM)
    client.setblocking(False)
    async with asyncio.timeout(10):
        await loop.sock_connect(client, (OUTSIDE, 80))
        served, peer = await loop.sock_accept(server)
        await loop.sock_sendall(served, b"welcome")
        assert await loop.sock_recv(client, 100) == b"welcome"
    assert peer[0] == HOST
    for each in (server, client, served):
        each.close()


async def test_a_guest_reaches_named_ports_of_the_gateway_and_no_others(host: Host) -> None:
    guest = await host.guest(2)
    with udp_server("0.0.0.0", CLOSED) as closed, udp_server("0.0.0.0", OPEN) as named:
        for address, port in ((GATEWAY, CLOSED), (HOST, CLOSED), (HOST, OPEN), ("10.100.255.255", OPEN)):
            guest.send(b"forbidden", address, port)
        guest.send(b"permitted", GATEWAY, OPEN)
        assert await datagram(named) == b"permitted"
        with pytest.raises(BlockingIOError):
            closed.recv(100)


async def test_a_guest_cannot_open_a_connection_to_the_hosts_api(host: Host) -> None:
    guest = await host.guest(2)
    loop = asyncio.get_running_loop()
    with (
        bound(socket.socket(), "0.0.0.0", CLOSED) as closed,
        bound(socket.socket(), "0.0.0.0", OPEN) as named,
        guest.namespace.socket(socket.SOCK_STREAM) as first,
        guest.namespace.socket(socket.SOCK_STREAM) as second,
    ):
        closed.listen()
        named.listen()
        first.setblocking(False)
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.connect((GATEWAY, CLOSED))
        async with asyncio.timeout(10):
            # The handshake of the second, a round trip and a half, was begun after the first.
            await loop.sock_connect(second, (GATEWAY, OPEN))
            served, _ = await loop.sock_accept(named)
        served.close()
        with pytest.raises(BlockingIOError):
            closed.accept()


async def test_a_guest_may_ping_the_gateway(host: Host) -> None:
    guest = await host.guest(2)
    with guest.namespace.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    client.setblocking(False)
    echo = bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0])
    client.sendto(echo, (GATEWAY, 0))
    assert (await datagram(client))[20:22] == b"\0\0"  # Echo reply.
    client.close()


async def test_a_guest_does_not_reach_another_through_the_gateway(host: Host) -> None:
    one, two = await host.guest(2), await host.guest(3)
    one.namespace.ip(f"route add {two.endpoint.ip}/32 via {GATEWAY}")
    with two.server(9) as server, udp_server("0.0.0.0", OPEN) as named:
        one.send(b"forbidden", str(two.endpoint.ip), 9)
        one.send(b"after it", GATEWAY, OPEN)
        assert await datagram(named) == b"after it"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"from the host", (str(two.endpoint.ip), 9))
        assert await datagram(server) == b"from the host"


@pytest.mark.parametrize("place", ["lan", "metadata"])
async def test_a_guest_does_not_reach_the_hosts_other_neighbours(host: Host, place: str) -> None:
    guest = await host.guest(2)
    namespace, address = (host.lan, LAN) if place == "lan" else (host.outside, METADATA)
    with bound(namespace.socket(socket.SOCK_DGRAM), address, 9) as server:
        with udp_server("0.0.0.0", OPEN) as named:
            guest.send(b"forbidden", address, 9)
            guest.send(b"after it", GATEWAY, OPEN)
            assert await datagram(named) == b"after it"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"from the host", (address, 9))
        assert await datagram(server) == b"from the host"


async def test_nobody_outside_reaches_a_guest_that_did_not_ask(host: Host) -> None:
    guest = await host.guest(2)
    with guest.server(9) as server, udp_server(HOST, OPEN) as named:
        with host.outside.socket(socket.SOCK_DGRAM) as client:
            client.sendto(b"forbidden", (str(guest.endpoint.ip), 9))
            client.sendto(b"after it", (HOST, OPEN))
        assert await datagram(named) == b"after it"
        assert await first_received(server, b"from the host", str(guest.endpoint.ip), 9) == b"from the host"


async def test_without_the_rules_all_of_them_are_reached(host: Host, nft: Run) -> None:
    """The negative control of everything above."""
    one, two = await host.guest(2), await host.guest(3)
    one.namespace.ip(f"route add {two.endpoint.ip}/32 via {GATEWAY}")
    nft("delete table inet ramet_rmtbr0")
    servers = {
        (GATEWAY, CLOSED): udp_server("0.0.0.0", CLOSED),
        (str(two.endpoint.ip), 9): two.server(9),
        (LAN, 9): bound(host.lan.socket(socket.SOCK_DGRAM), LAN, 9),
        (METADATA, 9): bound(host.outside.socket(socket.SOCK_DGRAM), METADATA, 9),
    }
    for (address, port), server in servers.items():
        one.send(b"reached", address, port)
        assert await datagram(server) == b"reached"
        server.close()
    with two.server(10) as server, host.outside.socket(socket.SOCK_DGRAM) as client:
        client.sendto(b"reached", (str(two.endpoint.ip), 10))
        assert await datagram(server) == b"reached"
