"""TAPs by ioctl, and the netlink calls that carry them."""

import errno
import fcntl
import os
import selectors
import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface

import pytest

from ramet.linux import netlink, tun
from tests.net.namespaces import own_namespace

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    """Put the test into a new network namespace."""
    with own_namespace():
        yield


def test_a_tap_lives_as_long_as_its_descriptor() -> None:
    fd = tun.open_tap("tap0")
    assert netlink.interface_exists("tap0")
    other = os.dup(fd)
    os.close(fd)
    assert netlink.interface_exists("tap0")
    os.close(other)
    assert not netlink.interface_exists("tap0")


def test_a_tap_has_the_header_that_saved_devices_expect_and_is_not_inherited() -> None:
    fd = tun.open_tap("tap0")
    (flags,) = struct.unpack_from("=H", fcntl.ioctl(fd, tun.TUNGETIFF, bytes(40)), 16)
    assert flags & tun.IFF_TAP
    assert flags & tun.IFF_VNET_HDR
    assert flags & tun.IFF_NO_PI
    assert not os.get_inheritable(fd)
    assert not os.get_blocking(fd)
    os.close(fd)


@pytest.mark.parametrize(("name", "error"), [("lo", "EBUSY"), ("", "EINVAL"), ("sixteen-letters-", "EINVAL")])
def test_a_name_that_cannot_be_had_is_refused(name: str, error: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        tun.open_tap(name)
    assert errno.errorcode[caught.value.errno or 0] == error
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_taken_tap_is_not_joined() -> None:
    fd = tun.open_tap("tap0")
    with pytest.raises(OSError, match="busy"):
        tun.open_tap("tap0")
    os.close(fd)


def test_a_bridge_with_address_and_port_reads_as_it_was_written() -> None:
    fd = tun.open_tap("tap0")
    with netlink.RouteSocket() as route:
        route.apply([netlink.create_bridge("br0", mac="02:00:00:00:00:01", mtu_bytes=1400)])
        bridge, tap = netlink.interface_index("br0"), netlink.interface_index("tap0")
        address = IPv4Interface("10.1.0.1/24")
        up = [netlink.add_address(bridge, address), netlink.set_up(bridge)]
        route.apply([*up, netlink.enslave(tap, bridge, mtu_bytes=1400, has_ipv6=False)])
        route.apply(
            [netlink.open_port(tap, learning=False), netlink.add_forwarding(tap, "02:00:00:00:00:02")]
        )
        route.apply([netlink.add_neighbour(bridge, address.ip + 1, "02:00:00:00:00:02")])
        links = {link.name: link for link in route.links()}
        assert links["br0"] == netlink.Link(bridge, "br0", "bridge", 0, True, "02:00:00:00:00:01", 1400)
        assert (links["tap0"].kind, links["tap0"].master, links["tap0"].is_up) == ("tun", bridge, True)
        assert (bridge, address) in route.addresses()
        assert netlink.Route(address.network, bridge, netlink.RT_TABLE_MAIN, 0) in route.routes()
        (neighbour,) = route.neighbours(bridge)
        assert neighbour == netlink.Neighbour(bridge, address.ip + 1, "02:00:00:00:00:02", True)
        assert netlink.Neighbour(tap, None, "02:00:00:00:00:02", True) in route.forwarding()
        route.apply([netlink.delete_neighbour(bridge, address.ip + 1), netlink.delete_link(bridge)])
        assert not netlink.interface_exists("br0")
    os.close(fd)


def test_the_first_failure_of_a_batch_is_raised_in_words_and_the_socket_goes_on() -> None:
    with netlink.RouteSocket() as route:
        with pytest.raises(OSError, match="set up: ") as caught:
            route.apply([netlink.set_up(4711), netlink.set_up(netlink.interface_index("lo"))])
        assert caught.value.errno == 19  # ENODEV
        assert [link.name for link in route.links() if link.is_up] == ["lo"]


def test_a_removed_interface_is_reported_and_a_port_that_merely_leaves_is_not() -> None:
    removals = netlink.LinkRemovals()
    fds = [tun.open_tap("tap0"), tun.open_tap("tap1")]
    with netlink.RouteSocket() as route:
        route.apply([netlink.create_bridge("br0", mac="02:00:00:00:00:01", mtu_bytes=1500)])
        for name in ("tap0", "tap1"):
            index, bridge = netlink.interface_index(name), netlink.interface_index("br0")
            route.apply([netlink.enslave(index, bridge, mtu_bytes=1500, has_ipv6=False)])
        route.apply([netlink.enslave(netlink.interface_index("tap1"), 0, mtu_bytes=1500, has_ipv6=False)])
    os.close(fds[0])
    with selectors.DefaultSelector() as selector:
        selector.register(removals, selectors.EVENT_READ)
        assert selector.select(10)
    assert removals.read() == {"tap0"}
    removals.close()
    os.close(fds[1])
