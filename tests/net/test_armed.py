"""Sleepers that are called: what of all that comes to their address is noticed, and what becomes of it."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Address, IPv4Network

import anyio
import pytest

from ramet.core.ids import InstanceId
from ramet.linux import netlink, tun
from ramet.linux.packet import send_frames
from ramet.net.bridge import BridgeConfig
from ramet.net.network import Network
from ramet.net.syn import NOTHING_IGNORED, Ignored
from tests.net.namespaces import Namespace
from tests.net.pumped import PumpedGuest

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
A = InstanceId("a")
HEADER = bytes(tun.VNET_HDR_BYTES)
ADDRESS = IPv4Address("10.100.0.2")
CLIENT = IPv4Address("10.100.0.1")
PORT = 8080
TIMEOUT_S = 20.0
ARP, IPV6 = 0x0806, 0x86DD


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    network = Network(BridgeConfig())
    await network.open()
    yield network
    await network.close()


class Calls:
    """Who was called; `wait` returns when somebody was."""

    def __init__(self) -> None:
        self.found: list[InstanceId] = []
        self._event = asyncio.Event()

    def __call__(self, instance: InstanceId) -> None:
        self.found.append(instance)
        self._event.set()

    async def wait(self) -> None:
        with anyio.fail_after(TIMEOUT_S):
            await self._event.wait()
        self._event.clear()


def frame(
    *,
    flags: int = 0x02,
    protocol: int = socket.IPPROTO_TCP,
    to: IPv4Address = ADDRESS,
    source: IPv4Address = CLIENT,
    port: int = PORT,
    fragment: int = 0,
    ether_type: int = 0x0800,
    options: bytes = b"",
) -> bytes:
    """Return a frame to the guest's MAC, by default the first of a connection, with its virtio header."""
    words = 5 + len(options) // 4
    tcp = struct.pack("!HHIIBBHHH", 40_000, port, 1, 0, 5 << 4, flags, 1024, 0, 0)
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x40 | words, 0, words * 4 + len(tcp), 1, fragment, 64, protocol, 0, source.packed, to.packed),
    )
    ether = bytes.fromhex("02fc0a640002 02fc0a640001") + struct.pack("!H", ether_type)
    return HEADER + ether + ip + options + tcp


async def armed(network: Network, ignored: Ignored = NOTHING_IGNORED) -> tuple[str, Calls]:
    """Arm an instance; return the name of its TAP, and who will have been called."""
    name, calls = network.reserve(A).tap_name, Calls()
    await network.arm(A, calls, ignored=ignored)
    return name, calls


@pytest.mark.parametrize(
    "one",
    [
        frame(),
        frame(flags=0xC2),  # Which asks for ECN, too.
        frame(options=bytes(8)),
        frame(source=IPv4Address("192.0.2.7")),
    ],
    ids=["syn", "ecn", "options", "from afar"],
)
async def test_the_first_packet_of_a_connection_is_noticed_once(network: Network, one: bytes) -> None:
    name, calls = await armed(network)
    assert network.is_waiting(A)
    send_frames(name, [one, one])
    await calls.wait()
    assert (calls.found, network.is_waiting(A), network.is_armed(A)) == ([A], False, True)
    # It lies there still, and the loop is not told of it again.
    assert network._armed[A].read()[0][len(HEADER) :] == one[len(HEADER) :]
    assert calls.found == [A]


@pytest.mark.parametrize(
    "one",
    [
        frame(flags=0x12),
        frame(flags=0x10),
        frame(flags=0x04),
        frame(flags=0x11),
        frame(flags=0x03),
        frame(protocol=socket.IPPROTO_UDP),
        frame(protocol=socket.IPPROTO_ICMP),
        frame(to=IPv4Address("10.100.0.3")),
        frame(to=IPv4Address("255.255.255.255")),
        frame(fragment=1),
        frame(ether_type=ARP),
        frame(ether_type=IPV6),
        frame(port=22),
        frame(source=IPv4Address("10.9.1.1")),
        HEADER + bytes(14),
        frame()[: len(HEADER) + 14 + 20],
    ],
    ids=[
        *("syn-ack", "ack", "rst", "fin-ack", "syn-fin", "udp", "icmp", "to another", "broadcast"),
        *("fragment", "arp", "ipv6", "ignored port", "ignored source", "nothing", "no tcp header"),
    ],
)
async def test_what_asks_for_no_connection_that_counts_is_not_noticed(network: Network, one: bytes) -> None:
    name, calls = await armed(network, Ignored((IPv4Network("10.9.0.0/16"),), (22, 9100)))
    send_frames(name, [one])
    assert network._armed[A].read() == []
    send_frames(name, [frame()])
    await calls.wait()
    assert len(network._armed[A].read()) == 1


async def test_the_longest_lists_of_what_is_ignored_fit(network: Network) -> None:
    sources = tuple(IPv4Network((int(IPv4Address("172.16.0.0")) + (i << 8), 24)) for i in range(100))
    name, calls = await armed(network, Ignored(sources, tuple(range(1, 101))))
    send_frames(name, [frame(port=100), frame(source=IPv4Address("172.16.99.9"))])
    assert network._armed[A].read() == []
    send_frames(name, [frame(port=101, source=IPv4Address("172.16.100.9"))])
    await calls.wait()


async def test_armed_again_it_forgets_who_has_asked_and_notices_the_next(network: Network) -> None:
    name, calls = await armed(network)
    send_frames(name, [frame()])
    await calls.wait()
    await network.arm(A, calls, ignored=Ignored(ports=(PORT,)))
    assert network.is_waiting(A)
    send_frames(name, [frame(), frame(port=81)])
    await calls.wait()
    (found,) = network._armed[A].read()
    assert found[len(HEADER) :] == frame(port=81)[len(HEADER) :]
    assert calls.found == [A, A]


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Return two sockets to connect by."""
    made = [socket.socket() for _ in range(2)]
    for client in made:
        client.setblocking(False)
    yield made
    for client in made:
        client.close()


def ask(client: socket.socket) -> None:
    """Send the first packet of a connection, and wait for nothing."""
    with pytest.raises(BlockingIOError):
        client.connect((str(ADDRESS), PORT))


async def test_all_who_ask_until_the_guest_has_woken_are_heard_then(
    network: Network, clients: list[socket.socket]
) -> None:
    _, calls = await armed(network)
    ask(clients[0])
    await calls.wait()
    tap = await network.attach(A)
    ask(clients[1])
    with pytest.raises(BlockingIOError):
        os.read(tap.fd, 1 << 16)  # What its VMM would read before it knows the guest's device.
    await network.deliver(A)
    source_at = len(HEADER) + 14 + 20
    ports = [struct.unpack_from("!H", os.read(tap.fd, 1 << 16), source_at)[0] for _ in clients]
    assert set(ports) == {client.getsockname()[1] for client in clients}
    assert not network.is_armed(A)
    tap.close()
    await network.release(A)


async def test_what_is_armed_on_a_bridge_that_had_no_port_hears_the_very_next(
    network: Network,
) -> None:
    """Each time, the only port goes and another comes: the bridge carries nothing in between."""
    for _ in range(20):
        _, calls = await armed(network)
        with socket.socket() as client:
            client.setblocking(False)
            ask(client)
        await calls.wait()  # The client is gone, and asks no second time.
        assert len(network._armed[A].read()) == 1
        await network.disarm(A)


async def test_who_asked_a_sleeper_is_connected_to_it_when_it_is_awake(
    network: Network, new_namespace: Callable[[], Namespace], clients: list[socket.socket]
) -> None:
    endpoint = network.reserve(A)
    _, calls = await armed(network)
    ask(clients[0])
    await calls.wait()
    tap = await network.attach(A)
    with PumpedGuest(endpoint, tap, new_namespace()) as guest:
        tap.close()
        with guest.namespace.socket(socket.SOCK_STREAM) as server:
            server.bind((str(ADDRESS), PORT))
            server.listen()
            await network.deliver(A)
            with anyio.fail_after(TIMEOUT_S):
                await anyio.wait_writable(clients[0])
            assert clients[0].getpeername() == (str(ADDRESS), PORT)
    await network.release(A)


async def test_a_vmm_that_opens_its_tap_by_name_is_sent_what_came_before(network: Network) -> None:
    name, calls = await armed(network)
    send_frames(name, [frame()])
    await calls.wait()
    tap = await network.attach(A, by_name=True)
    assert not tap.is_open
    vmm = tun._open(name, 0)
    try:
        await network.deliver(A)
        found = b""
        while found[len(HEADER) :] != frame()[len(HEADER) :]:
            found = os.read(vmm, 1 << 16)
    finally:
        os.close(vmm)
    await network.release(A)


async def test_what_is_not_wanted_any_more_leaves_nothing(network: Network) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    name, _ = await armed(network)
    await network.disarm(A)
    assert not netlink.interface_exists(name)
    assert network.statistics().attached_count == 0
    await network.arm(A, lambda instance: None)
    await network.detach(A)
    await network.disarm(A)
    await network.arm(A, lambda instance: None)
    await network.release(A)
    assert not netlink.interface_exists(name)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # The firewall's nft.


async def test_what_is_armed_when_the_network_closes_goes_with_it(network: Network) -> None:
    name, _ = await armed(network)
    await network.close()
    assert not netlink.interface_exists(name)
