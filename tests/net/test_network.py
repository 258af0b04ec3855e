"""Endpoints from reservation to release, against the kernel."""

import fcntl
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import anyio
import pytest

from ramet.core.errors import Invalid
from ramet.core.ids import InstanceId
from ramet.linux import netlink, tun
from ramet.net.bridge import Bridge, BridgeConfig
from ramet.net.errors import BridgeClash, NetworkFailed, SubnetClash, TapHeld
from ramet.net.network import AlreadyAttached, Network
from ramet.net.nft import Nft, NftRefused
from ramet.net.rates import RateLimits
from ramet.net.slots import Endpoint, NoEndpoint

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
A, B = InstanceId("a"), InstanceId("b")
Run = Callable[[str], str]


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    network = Network(BridgeConfig())
    await network.open()
    yield network
    await network.close()


async def admitted(network: Network) -> set[str]:
    """Return the names of the TAPs the kernel's filter knows."""
    return {element.interface for element in await network._firewall.elements()}


def links() -> dict[str, netlink.Link]:
    with netlink.RouteSocket() as route:
        return {link.name: link for link in route.links()}


def permanent_neighbours() -> set[str]:
    with netlink.RouteSocket() as route:
        found = route.neighbours(netlink.interface_index("rmtbr0"))
    return {str(neighbour.ip) for neighbour in found if neighbour.is_permanent}


async def test_opening_twice_changes_nothing(network: Network, ip: Run) -> None:
    before = ip("-o addr show rmtbr0")
    again = Network(BridgeConfig())
    await again.open()
    await again.close()
    assert ip("-o addr show rmtbr0") == before
    assert "10.100.0.1/16" in before
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"


async def test_without_a_default_route_there_is_no_uplink(network: Network) -> None:
    assert network.statistics().uplink is None
    facts = network.facts
    assert (str(facts.gateway), facts.prefix_length, facts.mtu_bytes) == ("10.100.0.1", 16, 1500)


async def test_the_gateways_mac_does_not_follow_the_ports(network: Network) -> None:
    network.reserve(A)
    tap = await network.attach(A)
    with netlink.RouteSocket() as route:
        mac = links()[tap.name].mac
        assert links()["rmtbr0"].mac == "02:fc:0a:64:00:01" != mac
        assert any(entry.mac == "02:fc:0a:64:00:02" for entry in route.forwarding())


async def test_a_subnet_in_use_as_an_address_is_refused_by_name(ip: Run) -> None:
    ip("link add office type veth peer name office1")
    ip("addr add 10.100.7.1/24 dev office")
    with pytest.raises(SubnetClash, match=r"10\.100\.7\.0/24 of office .*network\.subnet") as caught:
        await Bridge(BridgeConfig()).ensure()
    assert caught.value.code == "subnet_clash"
    assert caught.value.fields["interface"] == "office"
    assert "rmtbr0" not in links()


async def test_a_subnet_in_use_as_a_route_is_refused_but_a_default_route_is_not(ip: Run) -> None:
    ip("link add vpn type veth peer name vpn1")
    ip("link set vpn up")
    ip("route add default dev vpn")
    ip("route add 0.0.0.0/1 dev vpn")
    assert (await Bridge(BridgeConfig()).ensure()).uplink == "vpn"
    ip("route add 10.0.0.0/8 dev vpn")
    with pytest.raises(SubnetClash, match="vpn"):
        await Bridge(BridgeConfig()).ensure()


async def test_an_interface_that_is_no_bridge_of_ours_is_left_alone(ip: Run) -> None:
    ip("link add rmtbr0 type veth peer name other")
    with pytest.raises(BridgeClash):
        await Bridge(BridgeConfig()).ensure()
    ip("link del rmtbr0")
    ip("link add rmtbr0 type bridge")
    ip("addr add 172.20.0.1/16 dev rmtbr0")
    with pytest.raises(BridgeClash, match=r"172\.20\.0\.1/16"):
        await Bridge(BridgeConfig()).ensure()


async def test_a_bridge_left_half_made_is_finished(ip: Run) -> None:
    ip("link add rmtbr0 type bridge")
    await Bridge(BridgeConfig()).ensure()
    assert links()["rmtbr0"].is_up
    assert "10.100.0.1/16" in ip("addr show rmtbr0")


async def test_an_uplink_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Invalid, match="eth9"):
        await Bridge(BridgeConfig(uplink="eth9")).ensure()


@pytest.mark.parametrize(
    "settings",
    [
        {"name": 'x"; flush ruleset'},
        {"name": ""},
        {"tap_prefix": "much-too-long"},
        {"uplink": 'eth0" accept'},
        {"subnet": IPv4Network("10.0.0.0/30")},
        {"allow_host_ports": (("tcp", 0),)},
        {"allow_host_ports": (("icmp", 1),)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        BridgeConfig(**settings)  # type: ignore[arg-type] # On purpose.


async def test_twenty_five_at_once_share_transactions(network: Network) -> None:
    instances = [InstanceId(str(n)) for n in range(25)]
    endpoints = [network.reserve(instance) for instance in instances]
    before = network.statistics().firewall
    async with anyio.create_task_group() as group:
        for instance in instances:
            group.start_soon(network.attach, instance)
    after = network.statistics().firewall
    assert after.transaction_count - before.transaction_count <= 3
    assert after.change_count - before.change_count == 25
    found = links()
    assert all(found[e.tap_name].is_up and found[e.tap_name].master for e in endpoints)
    assert await admitted(network) == {e.tap_name for e in endpoints}
    async with anyio.create_task_group() as group:
        for instance in instances:
            group.start_soon(network.release, instance)
    assert not {e.tap_name for e in endpoints} & links().keys()
    assert await admitted(network) == permanent_neighbours() == set()
    assert network.statistics().held_count == network.statistics().attached_count == 0


async def test_only_who_reserved_can_attach_and_only_once(network: Network) -> None:
    with pytest.raises(NoEndpoint):
        await network.attach(A)
    network.reserve(A)
    await network.attach(A)
    with pytest.raises(AlreadyAttached):
        await network.attach(A)
    await network.release(A)
    await network.release(A)


async def test_a_slot_is_held_as_long_as_anybody_holds_its_tap(network: Network) -> None:
    endpoint = network.reserve(A)
    tap = await network.attach(A)
    vmm = os.dup(tap.fd)
    tap.close()
    with pytest.raises(TapHeld, match=endpoint.tap_name):
        await network.release(A, timeout_s=0)
    statistics = network.statistics()
    assert (statistics.held_count, statistics.stuck_count) == (1, 1)
    assert await admitted(network) == {endpoint.tap_name}
    os.close(vmm)
    await network.release(A)
    statistics = network.statistics()
    assert (statistics.held_count, statistics.stuck_count) == (0, 0)
    assert await admitted(network) == set()


async def test_release_waits_for_the_vmm_to_let_go(network: Network) -> None:
    endpoint = network.reserve(A)
    tap = await network.attach(A)
    vmm = os.dup(tap.fd)
    tap.close()
    async with anyio.create_task_group() as group:
        group.start_soon(network.release, A)
        while network.statistics().stuck_count == 0:
            await anyio.lowlevel.checkpoint()
        assert network.endpoint(A) == endpoint
        await anyio.to_thread.run_sync(os.close, vmm)
    assert network.statistics().held_count == 0


async def test_release_is_not_stopped_by_cancellation(network: Network) -> None:
    network.reserve(A)
    await network.attach(A)
    async with anyio.create_task_group() as group:
        group.start_soon(network.release, A)
        while network.statistics().stuck_count == 0:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert await admitted(network) == set()
    assert network.statistics().attached_count == 0


async def test_standby_keeps_the_slot_and_wakes_with_it(network: Network) -> None:
    endpoint = network.reserve(A)
    await network.attach(A)
    await network.detach(A)
    assert endpoint.tap_name not in links()
    assert await admitted(network) == set()
    assert network.reserve(B) != endpoint
    assert network.reserve(A) == endpoint
    assert (await network.attach(A)).name == endpoint.tap_name


async def test_a_refused_tap_leaves_no_admission_and_the_slot_held(network: Network, ip: Run) -> None:
    endpoint = network.reserve(A)
    ip("link del rmtbr0")
    with pytest.raises(NetworkFailed):
        await network.attach(A)
    assert endpoint.tap_name not in links()
    assert await admitted(network) == set()
    assert network.statistics().held_count == 1


async def test_a_strangers_tap_of_that_name_is_not_joined(network: Network, ip: Run) -> None:
    endpoint = network.reserve(A)
    ip(f"tuntap add mode tap name {endpoint.tap_name}")
    with pytest.raises(TapHeld, match=endpoint.tap_name):
        await network.attach(A)
    ip(f"link del {endpoint.tap_name}")
    await network.attach(A)


async def test_a_cancelled_attach_leaves_nothing(network: Network) -> None:
    endpoint = network.reserve(A)
    for turns in range(40):
        async with anyio.create_task_group() as group:
            group.start_soon(network.attach, A)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await network.detach(A)
        assert endpoint.tap_name not in links()
        assert await admitted(network) == set()
    assert network.statistics().stuck_count == 0


async def test_a_killed_nft_is_started_again_and_nobody_notices(network: Network) -> None:
    network.reserve(A)
    network.reserve(B)
    await network.attach(A)
    pid = network._firewall.nft_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await network.attach(B)
    assert await admitted(network) == {"rmt00002", "rmt00003"}
    assert network._firewall.nft_pid != pid
    assert network.statistics().firewall.nft_start_count == 2


async def test_rules_that_somebody_flushed_come_back_with_everybody_in_them(
    network: Network, nft: Run
) -> None:
    network.reserve(A)
    network.reserve(B)
    await network.attach(A)
    before = nft("list ruleset")
    nft("flush ruleset")
    await network.attach(B)
    assert await admitted(network) == {"rmt00002", "rmt00003"}
    await network.release(B)
    assert nft("list ruleset") == before


async def test_a_strangers_policy_that_drops_guests_is_named(network: Network, nft: Run) -> None:
    assert await network.foreign_drops() == ()
    nft("add table ip filter")
    nft("add chain ip filter INPUT { type filter hook input priority 0; policy drop; }")
    nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    assert await network.foreign_drops() == ("ip filter FORWARD",)


async def test_a_refused_line_leaves_nft_usable_and_says_why() -> None:
    nft = Nft()
    with pytest.raises(NftRefused, match="No such file or directory"):
        await nft.run("add table inet t; add element inet t nothing { 1 }")
    assert await nft.run("list tables") == ""
    assert await nft.run("add table inet t") == ""
    assert await nft.run("list tables") == "table inet t\n"
    assert nft.start_count == 1
    await nft.close()


async def test_a_restarted_daemon_finds_its_guests_as_they_were(network: Network) -> None:
    endpoint = network.reserve(A)
    tap = await network.attach(A)
    network.reserve(B)
    await network.attach(B)
    vmm = os.dup(tap.fd)
    await network.close()  # Guest A's VMM lives on, B's does not.
    restarted = Network(BridgeConfig())
    await restarted.open()
    assert await admitted(restarted) == {"rmt00002", "rmt00003"}
    assert restarted.adopt(A, endpoint.slot) == endpoint
    swept = await restarted.sweep()
    assert swept.taps == ()
    assert [str(ip) for ip in swept.neighbours] == ["10.100.0.3"]
    assert {element.interface for element in swept.admissions} == {"rmt00003"}
    assert await admitted(restarted) == {endpoint.tap_name}
    assert permanent_neighbours() == {str(endpoint.ip)}
    os.close(vmm)
    await restarted.release(A)
    await restarted.close()


async def test_a_sweep_ends_orphans_on_our_bridge_and_nothing_else(network: Network, ip: Run) -> None:
    network.reserve(A)
    await network.attach(A)
    for name, master in (("rmt00077", "rmtbr0"), ("other0", "rmtbr0"), ("rmt00078", "")):
        ip(f"tuntap add mode tap name {name}")
        if master:
            ip(f"link set {name} master {master}")
    ip("neigh add 10.100.0.77 lladdr 02:fc:0a:64:00:4d dev rmtbr0 nud permanent")
    await network._firewall.admit([Endpoint(77, IPv4Address("10.100.0.77"))])
    swept = await network.sweep()
    assert swept.taps == ("rmt00077",)
    assert swept.neighbours == (IPv4Address("10.100.0.77"),)
    assert {str(element.ip) for element in swept.admissions} == {"10.100.0.77"}
    assert {"rmt00002", "other0", "rmt00078"} <= links().keys()
    assert await admitted(network) == {"rmt00002"}
    again = await network.sweep()
    assert (again.taps, again.neighbours, again.admissions) == ((), (), frozenset())


async def test_two_daemons_in_one_namespace_do_not_meet(network: Network) -> None:
    other = Network(BridgeConfig(name="two0", subnet=IPv4Network("10.101.0.0/16"), tap_prefix="two"))
    await other.open()
    network.reserve(A)
    other.reserve(A)
    await network.attach(A)
    await other.attach(A)
    assert await admitted(network) == {"rmt00002"}
    assert await admitted(other) == {"two00002"}
    await other.sweep()
    assert {"rmt00002", "two00002"} <= links().keys()
    await other.close()


async def test_a_tap_is_not_passed_on_by_accident(network: Network) -> None:
    network.reserve(A)
    tap = await network.attach(A)
    assert not os.get_inheritable(tap.fd)
    assert socket.if_nametoindex(tap.name) == tap.ifindex


def open_by_name(name: str) -> int:
    """Open a TAP as a VMM does that is told its name."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    flags = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
    fcntl.ioctl(fd, tun.TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    return fd


async def test_a_tap_for_a_vmm_that_opens_it_by_name_is_there_until_it_is_released(network: Network) -> None:
    endpoint = network.reserve(A)
    tap = await network.attach(A, RateLimits(download_bytes_per_s=5_000_000), by_name=True)
    assert not tap.is_open
    port = links()[endpoint.tap_name]
    assert port.master == netlink.interface_index("rmtbr0")
    assert await admitted(network) == {endpoint.tap_name}
    os.close(open_by_name(endpoint.tap_name))  # As of a VMM that has ended.
    assert links()[endpoint.tap_name].index == port.index
    with pytest.raises(TapHeld):
        await network.attach(A, by_name=True)
    await network.detach(A)
    assert endpoint.tap_name not in links()
    assert await admitted(network) == set()
    await network.attach(A, by_name=True)
    await network.release(A)
    assert endpoint.tap_name not in links()
    assert network.statistics().held_count == 0


async def test_a_tap_that_a_vmm_opened_by_name_is_not_taken_from_it(network: Network) -> None:
    endpoint = network.reserve(A)
    await network.attach(A, by_name=True)
    vmm = open_by_name(endpoint.tap_name)
    with pytest.raises(TapHeld, match=endpoint.tap_name):
        await network.release(A, timeout_s=0)
    assert await admitted(network) == {endpoint.tap_name}
    async with anyio.create_task_group() as group:
        group.start_soon(network.release, A)
        while network.statistics().stuck_count == 0:
            await anyio.lowlevel.checkpoint()
        assert network.endpoint(A) == endpoint
        os.close(vmm)
    assert endpoint.tap_name not in links()
    assert network.statistics().held_count == 0


async def test_a_failed_tap_for_a_name_leaves_nothing(network: Network, ip: Run) -> None:
    endpoint = network.reserve(A)
    ip("link del rmtbr0")
    with pytest.raises(NetworkFailed):
        await network.attach(A, by_name=True)
    assert endpoint.tap_name not in links()


async def test_the_next_daemon_removes_the_taps_of_vmms_that_ended_without_one(network: Network) -> None:
    slots = {instance: network.reserve(instance).slot for instance in (A, B)}
    names = {instance: (await network.attach(instance, by_name=True)).name for instance in (A, B)}
    again = Network(BridgeConfig())
    await again.open()
    again.adopt(A, slots[A], by_name=True)
    again.adopt(B, slots[B], is_attached=False)  # Its record is there; its VMM is not.
    swept = await again.sweep()
    assert swept.taps == (names[B],)
    assert {names[A], names[B]} & links().keys() == {names[A]}
    await again.release(A)
    assert names[A] not in links()
    await again.close()
