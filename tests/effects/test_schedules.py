"""Scheduled snapshots of real records, layers and captures: in each state, over a restart, and at the end."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from unittest.mock import patch

import anyio
import anyio.lowlevel
import pytest

from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.snapshot_schedule import Retention, SnapshotSchedule
from ramet.core.spec import State
from ramet.instance.fleet_types import DeleteIncomplete
from ramet.policies.schedules import ScheduleKeeper, ScheduleNotFound
from ramet.snapshots.schedules import ScheduleStore
from ramet.store.database import StateUnwritable
from tests.effects.world import Daemon, World, performer_of

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

TIMEOUT_S = 20.0
HOURLY = SnapshotSchedule(3600.0, Retention(max_count=2), "hourly")


def store_of(daemon: Daemon) -> ScheduleStore:
    return ScheduleStore(daemon.site.folder.schedules)


@asynccontextmanager
async def keeping(daemon: Daemon) -> AsyncIterator[ScheduleKeeper]:
    keeper = ScheduleKeeper(daemon.fleet, daemon.snapshots, store_of(daemon))
    performer_of(daemon.fleet).watch(lambda record: None, keeper.see_gone)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, [view.record for view in daemon.fleet.list()])
        await anyio.lowlevel.checkpoint()
        yield keeper
        group.cancel_scope.cancel()


def make_due(daemon: Daemon) -> None:
    """Have the one schedule there is be due; for the next keeper."""
    ((record,), _) = store_of(daemon).load()
    store_of(daemon).save(replace(record, next_run_at=time.time() - 1))


async def wait_taken(daemon: Daemon, count: int) -> list[SnapshotRecord]:
    with anyio.fail_after(TIMEOUT_S):
        while len(daemon.snapshots.list()) != count:
            await anyio.lowlevel.checkpoint()
    return daemon.snapshots.list()


@pytest.mark.parametrize("state", [State.RUNNING, State.STANDBY, State.STOPPED])
async def test_a_snapshot_that_was_due_without_a_daemon_is_taken_by_the_next_and_can_be_forked(
    world: World, state: State
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        async with keeping(daemon) as keeper:
            keeper.put("src", HOURLY)
        match state:
            case State.STANDBY:
                await daemon.fleet.standby("src")
            case State.STOPPED:
                await daemon.fleet.stop("src")
        make_due(daemon)
    async with world.daemon() as daemon, keeping(daemon) as keeper:
        (taken,) = await wait_taken(daemon, 1)
        kind = SnapshotKind.STOPPED if state is State.STOPPED else SnapshotKind.STANDBY
        assert (taken.kind, daemon.fleet.get("src").record.state) == (kind, state)
        (outcome,) = await daemon.snapshots.fork(taken.id, ["child"])
        assert outcome.error is None
        with pytest.raises(ScheduleNotFound):
            keeper.get("child")


async def test_with_its_instance_a_schedule_goes_and_what_it_took_stays(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        async with keeping(daemon) as keeper:
            keeper.put("src", HOURLY)
        make_due(daemon)
        async with keeping(daemon):
            await wait_taken(daemon, 1)
            await daemon.fleet.delete("src")
        assert store_of(daemon).load() == ([], {})
        assert len(daemon.snapshots.list()) == 1


async def test_a_schedule_is_there_after_a_deletion_that_failed_and_goes_with_the_next(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        async with keeping(daemon) as keeper:
            made = keeper.put("src", HOURLY)
            with (
                patch.object(daemon.site.database, "forget", side_effect=StateUnwritable("no")),
                pytest.raises(DeleteIncomplete),
            ):
                await daemon.fleet.delete("src")
            assert keeper.get("src") == made
            await daemon.fleet.delete("src")
        assert store_of(daemon).load() == ([], {})


async def test_going_back_to_a_snapshot_leaves_the_schedule_as_it_is(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        before = await daemon.snapshots.create("src", SnapshotKind.STANDBY, "before", {})
        async with keeping(daemon) as keeper:
            made = keeper.put("src", HOURLY)
            await daemon.fleet.stop("src")
            await daemon.snapshots.restore("src", before.id)
            assert keeper.get("src") == made


async def test_a_damaged_file_is_told_and_the_others_are_followed(world: World) -> None:
    async with world.daemon() as daemon:
        for name in ("src", "other"):
            await daemon.fleet.create(name, daemon.spec)
        async with keeping(daemon) as keeper:
            made = keeper.put("src", HOURLY)
            keeper.put("other", HOURLY)
        (daemon.site.folder.schedules / f"{made.instance}.json").write_text("{")
        async with keeping(daemon) as keeper:
            assert keeper.get("other").schedule == HOURLY
            with pytest.raises(Exception, match="cannot be read") as told:
                keeper.get("src")
            assert getattr(told.value, "code", None) == "snapshot_schedule_unreadable"
            keeper.put("src", HOURLY)
        assert len(store_of(daemon).load()[0]) == 2
