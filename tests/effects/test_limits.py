"""The limits of instances and their forks, over the daemon's lives."""

import os
import signal
from dataclasses import replace

import anyio
import pytest

from ramet.core.spec import State
from ramet.linux import netlink, tc
from tests.effects.test_restart import check_only
from tests.effects.world import World
from tests.net.limits import rates

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
