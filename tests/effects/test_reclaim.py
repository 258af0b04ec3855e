"""Memory that guests give back, over the daemons of a host: held on, given again, and told of each guest."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from ramet.core.guest_memory import HostMemory
from ramet.effects.guest_memory import SiteGuests
from ramet.policies.reclaim import ReclaimConfig
from ramet.policies.reclaiming import ReclaimKeeper
from ramet.store.holds import HoldFile, HoldUnwritable
from ramet.vmm.fake.faults import Faults
from ramet.vmm.port import VmmFailed
from tests.effects.world import MEMORY_BYTES, Daemon, World, performer_of

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

TIMEOUT_S = 20.0
CONFIG = ReclaimConfig(floor_percent=0, floor_bytes_min=0)
HOST = HostMemory(8 << 30, 6 << 30)


def guests_of(daemon: Daemon) -> SiteGuests:
    return SiteGuests(daemon.site, lambda: (view.record for view in daemon.fleet.list()))


async def given(daemon: Daemon) -> dict[str, int]:
    return {guest.name: guest.balloon_bytes for guest in await guests_of(daemon).look()}


@asynccontextmanager
async def keeping(daemon: Daemon) -> AsyncIterator[ReclaimKeeper]:
    hold = HoldFile(daemon.site.folder.reclaim)
    keeper = ReclaimKeeper(guests_of(daemon), hold, lambda: HOST, CONFIG, retry_s=0.01)
    performer_of(daemon.fleet).watch(keeper.see)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, [view.record for view in daemon.fleet.list()])
        await anyio.lowlevel.checkpoint()
        yield keeper
        group.cancel_scope.cancel()


async def wait_given(daemon: Daemon, expected: dict[str, int]) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while await given(daemon) != expected:
            await anyio.lowlevel.checkpoint()


async def test_a_hold_outlives_the_daemon_and_ends_in_time(world: World) -> None:
    async with world.daemon() as daemon:
        for name in ("a", "b"):
            await daemon.fleet.create(name, daemon.spec)
        await daemon.fleet.create("asleep", daemon.spec)
        await daemon.fleet.standby("asleep")
        async with keeping(daemon) as keeper:
            found = await keeper.reclaim(2 * MEMORY_BYTES, 3600.0)
            assert [one.status.value for one in found.taken] == ["applied", "applied"]
    async with world.daemon() as daemon, keeping(daemon) as keeper:
        assert await given(daemon) == {"a": MEMORY_BYTES, "b": MEMORY_BYTES}
        await keeper.reclaim(MEMORY_BYTES, 0.001)
    async with world.daemon() as daemon, keeping(daemon):
        await wait_given(daemon, {"a": 0, "b": 0})


async def test_a_vmm_that_fails_is_told_and_tried_again_when_it_is_to_have_its_memory(world: World) -> None:
    faults = Faults()
    async with world.daemon(faults) as daemon:
        for name in ("a", "b"):
            await daemon.fleet.create(name, daemon.spec)
        async with keeping(daemon) as keeper:
            faults.fail("set_balloon", VmmFailed("it did not"), late=True)
            found = await keeper.reclaim(2 * MEMORY_BYTES, 3600.0)
            assert sorted(one.status.value for one in found.taken) == ["applied", "error"]
            faults.fail("balloon_bytes", VmmFailed("it does not tell"))
            told = await keeper.reclaim(2 * MEMORY_BYTES, 3600.0, is_dry_run=True)
            assert sorted(one.status.value for one in told.taken) == ["error", "unchanged"]
            faults.fail("set_balloon", VmmFailed("not yet"))
            await keeper.reclaim(0, 1.0)
            await wait_given(daemon, {"a": 0, "b": 0})
    assert faults.is_used_up


async def test_nobody_is_asked_for_what_cannot_be_written_down(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("a", daemon.spec)
        daemon.site.folder.reclaim.mkdir()  # Not a file that can be replaced.
        async with keeping(daemon) as keeper:
            with pytest.raises(HoldUnwritable):
                await keeper.reclaim(MEMORY_BYTES, 60.0)
            assert await given(daemon) == {"a": 0}


async def test_after_a_damaged_file_guests_have_all_of_theirs(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("a", daemon.spec)
        async with keeping(daemon) as keeper:
            await keeper.reclaim(MEMORY_BYTES, 3600.0)
        daemon.site.folder.reclaim.write_text("{")
        async with keeping(daemon):
            await wait_given(daemon, {"a": 0})
