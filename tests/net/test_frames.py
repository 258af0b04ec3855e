"""What passes from a TAP to the bridge. The test is the guest: it writes frames into the TAP."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address

import anyio.lowlevel
import pytest

from ramet.core.ids import InstanceId
from ramet.linux import netlink, tun
from ramet.net.bridge import BridgeConfig
from ramet.net.network import Network
from ramet.net.rates import RateLimits
from ramet.net.slots import Endpoint
from ramet.net.taps import Tap

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
GATEWAY_MAC = "02:fc:0a:64:00:01"
OTHER_MAC = "02:fc:0a:64:00:63"
OTHER_IP = IPv4Address("10.100.0.99")
GATEWAY = IPv4Address("10.100.0.1")
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
LLDP_MAC = "01:80:c2:00:00:0e"
PORT = 4973

Sockets = Callable[[str], socket.socket]
Run = Callable[[str], str]


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes) -> bytes:
    return packed(target) + packed(source) + struct.pack("!H", kind) + payload


def udp(source: IPv4Address, payload: bytes, target: IPv4Address = GATEWAY) -> bytes:
    """An IPv4 packet with a UDP datagram for PORT that has no checksum."""
    datagram = struct.pack("!HHHH", 4000, PORT, 8 + len(payload), 0) + payload
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, source.packed, target.packed
    )
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:] + datagram


def arp(mac: str, ip: IPv4Address, operation: int = 1) -> bytes:
    return (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        + packed(mac)
        + ip.packed
        + bytes(6)
        + GATEWAY.packed
    )


def send(tap: Tap, frame: bytes) -> None:
    """Send as the guest. The kernel has carried the frame as far as it goes when this returns."""
    os.write(tap.fd, bytes(tun.VNET_HDR_BYTES) + frame)


def received(listener: socket.socket) -> list[bytes]:
    """Return the frames that came in (not those the host sent out) until now."""
    frames: list[bytes] = []
    while True:
        try:
            frame, address = listener.recvfrom(65536)
        except BlockingIOError:
            return frames
        if address[2] != socket.PACKET_OUTGOING:
            frames.append(frame)


def drained(tap: Tap) -> list[bytes]:
    """Return the frames the guest was sent until now."""
    frames: list[bytes] = []
    while True:
        try:
            frames.append(os.read(tap.fd, 65536)[tun.VNET_HDR_BYTES :])
        except BlockingIOError:
            return frames


def learned() -> set[str]:
    with netlink.RouteSocket() as route:
        return {entry.mac for entry in route.forwarding()}


def set_learning(tap: Tap) -> None:
    with netlink.RouteSocket() as route:
        route.apply([netlink.open_port(tap.ifindex, learning=True)])


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    network = Network(BridgeConfig())
    await network.open()
    yield network
    await network.close()


async def received_at_last(listener: socket.socket, frame: bytes) -> list[bytes]:
    """Return the frames that came in until `frame` did, which may take some turns of the kernel's."""
    frames: list[bytes] = []
    async with asyncio.timeout(10):
        while frame not in frames:
            frames += received(listener)
            await anyio.lowlevel.checkpoint()
    return frames


@pytest.fixture
async def guest(network: Network) -> tuple[Endpoint, Tap]:
    endpoint = network.reserve(InstanceId("guest"))
    tap = await network.attach(InstanceId("guest"))
    # With its first port the bridge comes up, and some time later the kernel lets the host send through it.
    async with asyncio.timeout(10):
        while not any(frame[12:14] == b"\x08\x06" for frame in drained(tap)):
            send(tap, ethernet(endpoint.mac, BROADCAST_MAC, 0x0806, arp(endpoint.mac, endpoint.ip)))
            await anyio.lowlevel.checkpoint()
    return endpoint, tap


async def test_a_guests_own_frames_reach_the_bridge(
    guest: tuple[Endpoint, Tap], packet_socket: Sockets
) -> None:
    endpoint, tap = guest
    listener = packet_socket("rmtbr0")
    sent = [
        ethernet(endpoint.mac, GATEWAY_MAC, 0x0800, udp(endpoint.ip, b"own")),
        ethernet(endpoint.mac, BROADCAST_MAC, 0x0806, arp(endpoint.mac, endpoint.ip)),
    ]
    for frame in sent:
        send(tap, frame)
    assert received(listener) == sent


async def test_what_is_led_through_a_limit_passes_the_same_filter_behind_it(
    network: Network, packet_socket: Sockets
) -> None:
    endpoint = network.reserve(InstanceId("limited"))
    tap = await network.attach(InstanceId("limited"), RateLimits(upload_bytes_per_s=2_500_000))
    listener = packet_socket("rmtbr0")
    own = ethernet(endpoint.mac, GATEWAY_MAC, 0x0800, udp(endpoint.ip, b"own"))
    for forged in (
        ethernet(OTHER_MAC, GATEWAY_MAC, 0x0800, udp(endpoint.ip, b"another's MAC")),
        ethernet(endpoint.mac, GATEWAY_MAC, 0x0800, udp(OTHER_IP, b"another's address")),
        ethernet(endpoint.mac, GATEWAY_MAC, 0x86DD, bytes(40)),
    ):
        send(tap, forged)
    send(tap, own)
    assert await received_at_last(listener, own) == [own]
    assert OTHER_MAC not in learned()


async def test_the_host_answers_a_guests_arp_for_the_gateway_only(
    guest: tuple[Endpoint, Tap], ip: Run
) -> None:
    endpoint, tap = guest
    ip("addr add 192.0.2.7/24 dev lo")
    request = arp(endpoint.mac, endpoint.ip)
    drained(tap)
    send(tap, ethernet(endpoint.mac, BROADCAST_MAC, 0x0806, request))
    (reply,) = drained(tap)
    assert reply[:14] == packed(endpoint.mac) + packed(GATEWAY_MAC) + b"\x08\x06"
    send(tap, ethernet(endpoint.mac, BROADCAST_MAC, 0x0806, request[:-4] + bytes([192, 0, 2, 7])))
    assert drained(tap) == []


def _lies(endpoint: Endpoint) -> dict[str, bytes]:
    own, ip = endpoint.mac, endpoint.ip
    good = udp(ip, b"lie")
    return {
        "another MAC": ethernet(OTHER_MAC, GATEWAY_MAC, 0x0800, good),
        "another address": ethernet(own, GATEWAY_MAC, 0x0800, udp(OTHER_IP, b"lie")),
        "another's identity": ethernet(OTHER_MAC, GATEWAY_MAC, 0x0800, udp(OTHER_IP, b"lie")),
        "the gateway's identity": ethernet(GATEWAY_MAC, BROADCAST_MAC, 0x0800, udp(GATEWAY, b"lie")),
        "no address yet": ethernet(own, BROADCAST_MAC, 0x0800, udp(IPv4Address(0), b"lie")),
        "ARP from another MAC": ethernet(OTHER_MAC, BROADCAST_MAC, 0x0806, arp(own, ip)),
        "ARP telling another MAC": ethernet(own, BROADCAST_MAC, 0x0806, arp(OTHER_MAC, ip)),
        "ARP telling another address": ethernet(own, BROADCAST_MAC, 0x0806, arp(own, OTHER_IP)),
        "ARP announcing the gateway": ethernet(own, BROADCAST_MAC, 0x0806, arp(own, GATEWAY, 2)),
        "ARP of another kind": ethernet(own, BROADCAST_MAC, 0x0806, b"\0\6" + arp(own, ip)[2:]),
        "RARP": ethernet(own, BROADCAST_MAC, 0x8035, arp(own, ip, 3)),
        "IPv6": ethernet(own, GATEWAY_MAC, 0x86DD, b"\x60" + bytes(60)),
        "VLAN": ethernet(own, GATEWAY_MAC, 0x8100, struct.pack("!HH", 5, 0x0800) + good),
        "priority tag": ethernet(own, GATEWAY_MAC, 0x8100, struct.pack("!HH", 0, 0x0800) + good),
        "QinQ": ethernet(own, GATEWAY_MAC, 0x88A8, struct.pack("!HH", 5, 0x0800) + good),
        "MPLS": ethernet(own, GATEWAY_MAC, 0x8847, bytes(4) + good),
        "LLDP": ethernet(OTHER_MAC, LLDP_MAC, 0x88CC, bytes(46)),
        "STP": ethernet(OTHER_MAC, "01:80:c2:00:00:00", 0x0026, bytes(46)),
        "IPv4 to a link-local MAC": ethernet(own, LLDP_MAC, 0x0800, good),
        "short": ethernet(own, GATEWAY_MAC, 0x0800, b""),
    }


@pytest.mark.parametrize("lie", _lies(Endpoint(2, IPv4Address("10.100.0.2"))))
async def test_nothing_else_reaches_the_bridge(
    guest: tuple[Endpoint, Tap], packet_socket: Sockets, lie: str
) -> None:
    endpoint, tap = guest
    listener = packet_socket("rmtbr0")
    set_learning(tap)  # The filter alone shall be enough.
    truth = ethernet(endpoint.mac, GATEWAY_MAC, 0x0800, udp(endpoint.ip, b"truth"))
    send(tap, _lies(endpoint)[lie])
    send(tap, truth)
    assert received(listener) == [truth]
    assert OTHER_MAC not in learned()


@pytest.mark.parametrize("lie", ["another MAC", "another's identity", "ARP from another MAC", "IPv6", "VLAN"])
async def test_without_the_filter_the_same_lies_reach_it(
    guest: tuple[Endpoint, Tap], packet_socket: Sockets, nft: Run, lie: str
) -> None:
    endpoint, tap = guest
    listener = packet_socket("rmtbr0")
    nft("delete table bridge ramet_rmtbr0")
    send(tap, _lies(endpoint)[lie])
    assert len(received(listener)) == 1


@pytest.mark.parametrize("lie", ["another MAC", "another's identity", "ARP from another MAC"])
async def test_without_the_filter_a_learning_port_believes_them(
    guest: tuple[Endpoint, Tap], nft: Run, lie: str
) -> None:
    endpoint, tap = guest
    nft("delete table bridge ramet_rmtbr0")
    send(tap, _lies(endpoint)[lie])
    assert OTHER_MAC not in learned()  # Our ports do not learn: the second wall.
    set_learning(tap)
    send(tap, _lies(endpoint)[lie])
    assert OTHER_MAC in learned()


@pytest.mark.parametrize("mac", ["01:80:c2:00:00:00", "01:80:c2:00:00:03", LLDP_MAC])
@pytest.mark.parametrize("wall", ["bridge", "inet"])
async def test_each_table_by_itself_stops_frames_to_link_local_macs(
    guest: tuple[Endpoint, Tap], nft: Run, wall: str, mac: str
) -> None:
    endpoint, tap = guest
    frame = ethernet(endpoint.mac, mac, 0x0800, udp(endpoint.ip, b"in"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", PORT))
        server.setblocking(False)
        nft(f"delete table {'inet' if wall == 'bridge' else 'bridge'} ramet_rmtbr0")
        send(tap, frame)
        with pytest.raises(BlockingIOError):
            server.recv(100)
        nft(f"delete table {wall} ramet_rmtbr0")
        send(tap, frame)
        assert server.recv(100) == b"in"


async def test_a_port_with_the_kernels_own_options_does_not_reach_the_host_as_a_tap(
    guest: tuple[Endpoint, Tap], nft: Run, ip: Run
) -> None:
    """By default an LLDP MAC takes any packet past every hook of the bridge."""
    endpoint, tap = guest
    ip(f"link set {tap.name} type bridge_slave group_fwd_mask 0")
    frame = ethernet(endpoint.mac, LLDP_MAC, 0x0800, udp(endpoint.ip, b"in"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", PORT))
        server.setblocking(False)
        send(tap, frame)
        with pytest.raises(BlockingIOError):
            server.recv(100)
        nft("delete table inet ramet_rmtbr0")
        send(tap, frame)
        assert server.recv(100) == b"in"


async def test_taps_do_not_hear_each_other(
    network: Network, guest: tuple[Endpoint, Tap], ip: Run, nft: Run
) -> None:
    nft("delete table inet ramet_rmtbr0")  # Where br_netfilter is loaded, it forbids this too.
    endpoint, tap = guest
    peer = network.reserve(InstanceId("peer"))
    peer_tap = await network.attach(InstanceId("peer"))
    drained(peer_tap)
    direct = ethernet(endpoint.mac, peer.mac, 0x0800, udp(endpoint.ip, b"hello", peer.ip))
    broadcast = ethernet(endpoint.mac, BROADCAST_MAC, 0x0806, arp(endpoint.mac, endpoint.ip))
    for frame in (direct, broadcast):
        send(tap, frame)
    assert drained(peer_tap) == []
    ip(f"link set {peer.tap_name} type bridge_slave isolated off")
    ip(f"link set {endpoint.tap_name} type bridge_slave isolated off")
    for frame in (direct, broadcast):
        send(tap, frame)
    assert drained(peer_tap) == [direct, broadcast]


async def test_a_guest_is_not_woken_by_what_is_meant_for_another(
    network: Network, guest: tuple[Endpoint, Tap]
) -> None:
    _, tap = guest
    peer = network.reserve(InstanceId("peer"))
    peer_tap = await network.attach(InstanceId("peer"))
    drained(tap)
    drained(peer_tap)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"for the peer", (str(peer.ip), 9))
    (frame,) = drained(peer_tap)  # No ARP before it: the host knows.
    assert frame.startswith(packed(peer.mac) + packed(GATEWAY_MAC))
    assert frame.endswith(b"for the peer")
    assert drained(tap) == []


async def test_a_released_endpoint_passes_nothing_under_its_old_name(
    network: Network, packet_socket: Sockets
) -> None:
    endpoint = network.reserve(InstanceId("a"))
    await network.attach(InstanceId("a"))
    await network.release(InstanceId("a"))
    listener = packet_socket("rmtbr0")
    fd = tun.open_tap(endpoint.tap_name)
    tap = Tap(endpoint.tap_name, netlink.interface_index(endpoint.tap_name), fd)
    with netlink.RouteSocket() as route:
        bridge = netlink.interface_index("rmtbr0")
        route.apply([netlink.enslave(tap.ifindex, bridge, mtu_bytes=1500, has_ipv6=False)])
        route.apply([netlink.open_port(tap.ifindex, learning=True)])
    send(tap, ethernet(endpoint.mac, GATEWAY_MAC, 0x0800, udp(endpoint.ip, b"ghost")))
    assert received(listener) == []
    assert endpoint.mac not in learned()
    tap.close()
