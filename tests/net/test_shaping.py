"""The limits of TAPs in the kernel: at first, after a restart, when they fail, and to the end."""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from ramet.core.ids import InstanceId
from ramet.linux import netlink, tc
from ramet.net.bridge import BridgeConfig
from ramet.net.errors import IfbHeld
from ramet.net.network import Network
from ramet.net.rates import UNLIMITED, RateLimits
from ramet.net.shaping import ShapingStatistics
from tests.net.limits import rates

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
A, B = InstanceId("a"), InstanceId("b")
LIMITS = RateLimits(download_bytes_per_s=2_500_000, upload_bytes_per_s=1_000_000)
Run = Callable[[str], str]


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    async with opened() as network:
        yield network


@asynccontextmanager
async def opened(config: BridgeConfig | None = None) -> AsyncIterator[Network]:
    network = Network(config or BridgeConfig())
    await network.open()
    yield network
    await network.close()


def tc_objects() -> set[str]:
    """Return all queues and filters of the namespace that somebody put there, and all IFBs."""
    found = set()
    with netlink.RouteSocket() as route:
        links = route.links()
    for link in links:
        if link.kind == tc.IFB_KIND:
            found.add(f"{link.name} ifb")
        for what in ("qdisc", "filter"):
            command = ["tc", "-j", what, "show", "dev", link.name]
            for ingress in ([], ["ingress"]) if what == "filter" else ([],):
                done = subprocess.run([*command, *ingress], check=True, capture_output=True, text=True)
                for entry in json.loads(done.stdout or "[]"):
                    if entry["kind"] in ("tbf", "ingress", "u32"):
                        found.add(f"{link.name} {entry['kind']}")
    return found


async def settled(network: Network) -> ShapingStatistics:
    """See to what waits, as `Network.run` does, and return what was done."""
    await network._shaping.work()
    return network.statistics().shaping


async def test_a_tap_has_its_limits_when_it_is_handed_out(network: Network) -> None:
    network.reserve(A)
    tap = await network.attach(A, LIMITS)
    assert rates() == {"rmt00002": 2_500_000, "rmtu0002": 1_000_000}
    with netlink.RouteSocket() as route:
        assert tc.redirected_to(route, tap.ifindex) == netlink.interface_index("rmtu0002")


async def test_a_tap_is_not_up_before_it_is_limited(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request to the kernel is watched: those that limit come before the one that sets the TAP up."""
    sent: list[str] = []
    apply = netlink.RouteSocket.apply

    def watched(route: netlink.RouteSocket, requests: list[netlink.Request]) -> None:
        sent.extend(request.what for request in requests)
        apply(route, requests)

    monkeypatch.setattr(netlink.RouteSocket, "apply", watched)
    network.reserve(A)
    await network.attach(A, LIMITS)
    assert sent.count("limit the rate") == 2
    up = sent.index("set up the port")
    assert {"limit the rate", "redirect what comes in"} <= set(sent[:up])
    assert not {"limit the rate", "redirect what comes in"} & set(sent[up:])


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (UNLIMITED, set()),
        (RateLimits(download_bytes_per_s=10_000), {"rmt00002 tbf"}),
        (
            RateLimits(upload_bytes_per_s=10_000),
            {"rmtu0002 ifb", "rmtu0002 tbf", "rmt00002 ingress", "rmt00002 u32"},
        ),
    ],
)
async def test_only_what_is_asked_for_is_made_and_release_leaves_nothing(
    network: Network, limits: RateLimits, expected: set[str]
) -> None:
    network.reserve(A)
    await network.attach(A, limits)
    assert tc_objects() == expected
    await network.release(A)
    assert tc_objects() == set()


async def test_rates_above_what_four_bytes_hold_are_kept_whole(network: Network) -> None:
    network.reserve(A)
    await network.attach(A, RateLimits(download_bytes_per_s=50_000_000_000))
    assert rates() == {"rmt00002": 50_000_000_000}


async def test_the_networks_default_holds_where_nothing_is_asked() -> None:
    async with opened(BridgeConfig(default_limits=LIMITS)) as network:
        for instance, limits in ((A, UNLIMITED), (B, RateLimits(upload_bytes_per_s=3_000))):
            network.reserve(instance)
            await network.attach(instance, limits)
        assert rates() == {
            "rmt00002": 2_500_000,
            "rmtu0002": 1_000_000,
            "rmt00003": 2_500_000,
            "rmtu0003": 3_000,
        }


async def test_standby_takes_the_limits_off_and_waking_puts_them_on_again(network: Network) -> None:
    network.reserve(A)
    await network.attach(A, LIMITS)
    await network.detach(A)
    assert tc_objects() == set()
    await network.attach(A, LIMITS)
    assert rates() == {"rmt00002": 2_500_000, "rmtu0002": 1_000_000}


async def test_twenty_five_released_at_once_leave_no_ifb_behind(network: Network) -> None:
    instances = [InstanceId(str(n)) for n in range(25)]
    async with anyio.create_task_group() as group:
        for instance in instances:
            network.reserve(instance)
            group.start_soon(network.attach, instance, LIMITS)
    assert len(rates()) == 50
    async with anyio.create_task_group() as group:
        for instance in instances:
            group.start_soon(network.release, instance)
    assert tc_objects() == set()
    assert network.statistics().held_count == 0


async def test_a_strangers_interface_with_the_name_of_an_ifb_is_left_alone(network: Network, ip: Run) -> None:
    ip("link add rmtu0002 type veth peer name other")
    network.reserve(A)
    with pytest.raises(IfbHeld, match="rmtu0002"):
        await network.attach(A, LIMITS)
    assert not netlink.interface_exists("rmt00002")
    assert netlink.interface_exists("rmtu0002")
    assert (network.statistics().stuck_count, network.statistics().attached_count) == (0, 0)
    ip("link del rmtu0002")
    await network.attach(A, LIMITS)
    assert rates() == {"rmt00002": 2_500_000, "rmtu0002": 1_000_000}


async def test_an_ifb_that_was_left_behind_is_used_again(network: Network, ip: Run) -> None:
    ip("link add rmtu0002 type ifb")
    network.reserve(A)
    await network.attach(A, LIMITS)
    assert rates() == {"rmt00002": 2_500_000, "rmtu0002": 1_000_000}


async def test_a_restarted_daemon_finds_limits_as_they_are_and_mends_what_lacks(ip: Run) -> None:
    """One as it should be; one without its bucket; one whose detour leads nowhere; one without any."""
    instances = [InstanceId(name) for name in "abcd"]
    taps = []
    async with opened() as network:
        for instance in instances:
            network.reserve(instance)
            tap = await network.attach(instance, LIMITS if instance != "d" else UNLIMITED)
            taps.append(os.dup(tap.fd))
    whole = rates()
    with netlink.RouteSocket() as route:
        route.apply([tc.remove_bucket(netlink.interface_index("rmt00003"))])
    ip("link del rmtu0004")
    async with opened() as restarted:
        for slot, instance in enumerate(instances, start=2):
            restarted.adopt(instance, slot, limits=LIMITS)
        done = await settled(restarted)
        assert (done.kept_count, done.applied_count, done.failed_count) == (1, 3, 0)
        assert rates() == {**whole, "rmt00005": 2_500_000, "rmtu0005": 1_000_000}
        for fd in taps:
            os.close(fd)
        for instance in instances:
            await restarted.release(instance)
    assert tc_objects() == set()


async def test_limits_no_longer_wanted_are_taken_off_after_a_restart() -> None:
    async with opened(BridgeConfig(default_limits=LIMITS)) as network:
        network.reserve(A)
        tap = os.dup((await network.attach(A)).fd)
    async with opened() as restarted:
        restarted.adopt(A, 2)
        assert (await settled(restarted)).applied_count == 1
        assert tc_objects() == set()
        os.close(tap)
        await restarted.release(A)


async def test_a_guest_found_that_cannot_be_limited_is_degraded_until_it_can(ip: Run) -> None:
    async with opened() as network:
        network.reserve(A)
        tap = os.dup((await network.attach(A)).fd)
    ip("link add rmtu0002 type veth peer name other")
    async with opened() as restarted:
        restarted.adopt(A, 2, limits=LIMITS)
        done = await settled(restarted)
        assert done.failed_count == 1
        assert done.degraded.keys() == {"rmt00002"}
        assert "rmtu0002 exists already" in done.degraded["rmt00002"]
        ip("link del rmtu0002")
        restarted._shaping.put_nowait(restarted.endpoint(A), LIMITS)
        assert (await settled(restarted)).degraded == {}
        assert rates() == {"rmt00002": 2_500_000, "rmtu0002": 1_000_000}
        os.close(tap)
        await restarted.release(A)


async def test_a_sweep_removes_the_ifbs_of_guests_that_ended_without_us(ip: Run) -> None:
    async with opened() as network:
        for instance in (A, B):
            network.reserve(instance)
        kept = os.dup((await network.attach(A, LIMITS)).fd)
        await network.attach(B, LIMITS)
    for name in ("rmtu00099", "two0002", "rmtu0099"):  # Two not ours by name, one that is.
        ip(f"link add {name} type ifb")
    ip("link add rmtu0098 type veth peer name other")
    async with opened() as restarted:
        restarted.adopt(A, 2, limits=LIMITS)
        restarted.adopt(B, 3, limits=LIMITS, is_attached=False)
        assert set((await restarted.sweep()).ifbs) == {"rmtu0003", "rmtu0099"}
        assert (await restarted.sweep()).ifbs == ()
        found = {name for name in tc_objects() if name.endswith(" ifb")}
        assert found == {"rmtu0002 ifb", "rmtu00099 ifb", "two0002 ifb"}
        assert netlink.interface_exists("rmtu0098")
        os.close(kept)
        await restarted.release(A)


async def test_ifbs_are_swept_though_the_bridge_is_gone(ip: Run, network: Network) -> None:
    ip("link add rmtu0099 type ifb")
    ip("link del rmtbr0")
    assert (await network.sweep()).ifbs == ("rmtu0099",)


async def test_a_cancelled_attach_leaves_no_limits(network: Network) -> None:
    network.reserve(A)
    for turns in range(0, 60, 3):
        async with anyio.create_task_group() as group:
            group.start_soon(network.attach, A, LIMITS)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await network.detach(A)
        assert tc_objects() == set()
    assert network.statistics().stuck_count == 0
