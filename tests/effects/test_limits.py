"""The limits of instances and their forks, over the daemon's lives."""

import os
import signal
from dataclasses import replace

import anyio
import pytest

from ramet.core.spec import State
from ramet.linux import netlink, tc
from ramet.net import shaping
from ramet.net.errors import IfbHeld
from tests.effects.test_restart import check_only
from tests.effects.world import World
from tests.net.limits import rates
from tests.net.namespaces import run_ip

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


async def test_children_have_their_sources_limits_which_a_new_daemon_finds_or_mends(world: World) -> None:
    async with world.daemon() as daemon:
        spec = replace(daemon.spec, download_bytes_per_s=2_500_000, upload_bytes_per_s=1_000_000)
        await daemon.fleet.create("src", spec)
        assert (await daemon.fleet.fork("src", ["child", "other"]))[0].error is None
        limited = rates()
        assert sorted(limited.values()) == [1_000_000] * 3 + [2_500_000] * 3
        ended = daemon.fleet.get("other").record.id
        endpoint = daemon.site.network.endpoint(ended)
        pid = daemon.site.rigs[ended].vm.runtime.pid
    os.kill(pid, signal.SIGKILL)
    with netlink.RouteSocket() as route:
        route.apply([tc.remove_bucket(netlink.interface_index("rmt00002"))])
    async with world.daemon() as daemon:
        network = daemon.site.network
        while (done := network.statistics().shaping).kept_count + done.applied_count < 2:
            await anyio.lowlevel.checkpoint()
        assert (done.kept_count, done.applied_count, done.failed_count) == (1, 1, 0)
        left = {name: limited[name] for name in limited.keys() - {endpoint.tap_name, endpoint.ifb_name}}
        assert rates() == left
        assert (await daemon.fleet.start("other")).record.state is State.RUNNING
        assert rates() == limited
        for name in ("src", "child", "other"):
            await daemon.fleet.delete(name)
        assert rates() == {}
        await check_only(world, daemon, set())


async def test_a_sleeper_and_what_is_forked_of_it_wake_with_its_limits(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        spec = replace(daemon.spec, download_bytes_per_s=2_500_000, upload_bytes_per_s=1_000_000)
        await daemon.fleet.create("src", spec)
        limited = rates()
        await daemon.fleet.standby("src")
        while world.leftovers()["admissions"]:
            await anyio.lowlevel.checkpoint()
        assert rates() == {}
        assert world.leftovers()["ifbs"] == set()
        (outcome,) = await daemon.fleet.fork("src", ["child"], target=State.RUNNING)
        assert outcome.error is None
        assert sorted(rates().values()) == [1_000_000, 2_500_000]
        await daemon.fleet.restore("src")
        assert sorted(rates().values()) == [1_000_000, 1_000_000, 2_500_000, 2_500_000]
        assert limited.items() <= rates().items()
        for name in ("src", "child"):
            await daemon.fleet.delete(name)
        assert world.leftovers() == before


async def test_an_instance_that_cannot_be_limited_as_asked_does_not_start(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        spec = replace(daemon.spec, upload_bytes_per_s=1_000_000)
        run_ip("link add rmtu0002 type veth peer name other")
        with pytest.raises(IfbHeld):
            await daemon.fleet.create("src", spec)
        run_ip("link del rmtu0002")
        assert world.leftovers() == before
        assert (await daemon.fleet.create("src", spec)).record.state is State.RUNNING


async def test_a_guest_found_that_cannot_be_limited_says_so_until_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shaping, "RETRY_S", 0.01)
    async with world.daemon() as daemon:
        spec = replace(daemon.spec, upload_bytes_per_s=1_000_000)
        await daemon.fleet.create("src", spec)
    run_ip("link del rmtu0002")
    run_ip("link add rmtu0002 type veth peer name other")
    async with world.daemon() as daemon:
        while (reason := daemon.fleet.get("src").network_degraded) is None:
            await anyio.lowlevel.checkpoint()
        assert "rmtu0002 exists already" in reason
        run_ip("link del rmtu0002")
        while daemon.fleet.get("src").network_degraded is not None:
            await anyio.lowlevel.checkpoint()
        assert rates() == {"rmtu0002": 1_000_000}
        await daemon.fleet.delete("src")
