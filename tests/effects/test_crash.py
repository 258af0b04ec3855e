"""A daemon killed at any step of an operation: what ran runs on, and nothing half-made is left."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.core.restart import RestartPolicy, RestartWhen
from ramet.core.snapshot import SnapshotKind
from ramet.core.snapshot_schedule import (
    INTERVAL_S_MAX,
    Retention,
    ScheduledRun,
    ScheduleRecord,
    SnapshotSchedule,
)
from ramet.core.spec import State
from ramet.core.supervision import judge_restart
from ramet.core.volumes import VolumeMount
from ramet.instance.fleet_types import InstanceNotFound
from ramet.snapshots.schedules import ScheduleStore
from ramet.vmm.fake.faults import Faults
from tests.effects.crash import (
    OPERATIONS,
    Operation,
    create_with_volume,
    pool_settled,
    schedule_run,
)
from tests.effects.crashing import Crashes
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns, pytest.mark.timeout(600)]

SETTLE_TIMEOUT_S = 20.0
LIVED_SHARE = 10
"""One daemon in so many at most may come to its end without the step it was to be killed at."""
ALWAYS = RestartPolicy(RestartWhen.ALWAYS, 0.1, 0, 600.0)
MAKING: tuple[Operation, ...] = (
    "create",
    "fork",
    "copy",
    "snapshot",
    "snapshot_fork",
    "pool",
    "pooled_fork",
    "snapshot_pooled_fork",
    "schedule",
    "volume",
)


@contextmanager
def noted(step: str) -> Iterator[None]:
    """Have whatever fails inside say in which step the daemon had been killed."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"killed before: {step}")
        raise


async def settle(daemon: Daemon, name: str) -> State | None:
    """Wait until an instance runs, sleeps or is stopped, and return that; or until it is gone: None."""
    with anyio.fail_after(SETTLE_TIMEOUT_S):
        while True:
            try:
                state = daemon.fleet.get(name).record.state
            except InstanceNotFound:
                return None
            if state in (State.RUNNING, State.STOPPED, State.STANDBY):
                return state
            await anyio.lowlevel.checkpoint()


async def check_well(daemon: Daemon, name: str) -> None:
    """It runs, neither paused nor frozen: a daemon serves before all guests have been thawed."""
    with anyio.fail_after(SETTLE_TIMEOUT_S):
        while not await daemon.is_well(name):
            await anyio.lowlevel.checkpoint()


async def check_old(world: World, daemon: Daemon, boot_ids: dict[str, str]) -> None:
    """What ran before runs still, with what it remembers; and there is nothing of anybody else."""
    views = {view.record.name: view.record for view in daemon.fleet.list()}
    assert views.keys() == boot_ids.keys()
    for name, boot_id in boot_ids.items():
        await check_well(daemon, name)
        memory = await daemon.memory(name)
        assert (memory["boot_id"], await daemon.run(name, "get", "who")) == (boot_id, "src")
    ids = {record.id for record in views.values()}
    layers = daemon.site.layers
    chains = [layers.chain(record.layer) for record in views.values() if record.layer is not None]
    with anyio.fail_after(SETTLE_TIMEOUT_S):
        while (found := world.leftovers())["captures"]:  # Deleted behind everybody's back.
            await anyio.lowlevel.checkpoint()
    assert found["snapshots"] == found["volumes"] == set()
    assert len(found["processes"]) == len(found["taps"]) == len(found["admissions"]) == len(ids)
    assert found["folders"] == found["records"] == set(world.processes().values()) == ids
    assert found["journal"] == set()
    assert found["layers"] == {path.name for chain in chains for path, form in chain if form == "qcow2"}
    assert daemon.site.network.statistics().held_count == len(ids)


async def prepare(daemon: Daemon, operation: Operation) -> None:
    """Have "new" be there as an operation needs it: it has written something to its disk."""
    if operation in ("snapshot_fork", "snapshot_pooled_fork"):
        await daemon.snapshots.create("src", SnapshotKind.STANDBY, "kept", {})
    if operation == "schedule":
        await prepare_schedule(daemon)
    if operation in MAKING:
        return
    if operation == "volume_delete":
        await create_with_volume(daemon)
    else:
        assert (await daemon.fleet.fork("src", ["new"]))[0].error is None
    await daemon.run("new", "write", "kept", "yes")
    if operation == "start":
        view = await daemon.fleet.stop("new")
        while view.record.id in daemon.site.rigs:
            await anyio.lowlevel.checkpoint()
    elif operation == "restart":
        record = (await daemon.fleet.update("new", {"restart_policy": ALWAYS})).record
        os.kill(daemon.site.rigs[record.id].vm.runtime.pid, signal.SIGKILL)
        await daemon.fleet.wait("new", State.STOPPED, SETTLE_TIMEOUT_S)
        while record.id in daemon.site.rigs:
            await anyio.lowlevel.checkpoint()
    elif operation in ("standby", "restore"):
        # It has slept before, so that a sleep is a difference, and a wake is one from such.
        await daemon.fleet.standby("new")
        await daemon.fleet.restore("new")
        if operation == "restore":
            await daemon.fleet.standby("new")
    elif operation == "snapshot_restore":
        await daemon.snapshots.create("new", SnapshotKind.STANDBY, "kept", {})
        await daemon.run("new", "write", "kept", "no")
        await daemon.fleet.standby("new")


async def prepare_schedule(daemon: Daemon) -> None:
    """Have "src" have a schedule that has run once and is due again; it keeps one snapshot."""
    source = daemon.fleet.get("src").record.id
    schedule, due = SnapshotSchedule(INTERVAL_S_MAX, Retention(max_count=1)), time.time() - 60
    record = ScheduleRecord("one", source, schedule, due, due, due)
    await daemon.snapshots.create("src", SnapshotKind.STANDBY, None, {}, run=record.coming)
    ScheduleStore(daemon.site.folder.schedules).save(replace(record, next_run=2))


async def check_schedule(daemon: Daemon) -> None:
    """The second run has been or is done now, once; what it took is the one snapshot that is kept."""
    record = await schedule_run(daemon)
    assert (record.next_run, record.last_error) == (3, "")
    (kept,) = daemon.snapshots.list()
    assert (kept.id, kept.run) == (record.last_snapshot, ScheduledRun("one", 2))


async def check_snapshot(daemon: Daemon) -> None:
    """If there is a snapshot it is whole. It is removed here."""
    for snapshot in daemon.snapshots.list():
        (outcome,) = await daemon.snapshots.fork(snapshot.id, ["of-snapshot"])
        assert outcome.error is None
        await check_well(daemon, "of-snapshot")
        await daemon.fleet.delete("of-snapshot")
        await daemon.snapshots.delete(snapshot.id)


def check_volume(daemon: Daemon, operation: Operation, *, is_there: bool) -> None:
    """If there is a volume it is whole, and "new" has it if it is there: without it, it would not be."""
    found = daemon.volumes.list()
    assert len(found) >= (is_there and operation in ("volume", "volume_delete"))
    for record in found:
        assert len(daemon.volumes.attachments(record.id)) == is_there
        assert daemon.site.volumes.disk_of(VolumeMount(record.id, "/data", is_read_only=True)).exists()


async def check_new(daemon: Daemon, operation: Operation) -> None:
    """What an operation was about is whole: as it was before, or as it was to become. It is removed here."""
    state = await settle(daemon, "new")
    assert (
        state
        in {
            "create": (None, State.RUNNING),
            "fork": (None, State.RUNNING),
            "stop": (State.RUNNING, State.STOPPED),
            "start": (State.STOPPED, State.RUNNING),
            "delete": (State.RUNNING, None),
            "standby": (State.RUNNING, State.STANDBY),
            "restore": (State.STANDBY, State.RUNNING),
            "copy": (None, State.STANDBY),
            "snapshot": (None,),
            "snapshot_fork": (None, State.RUNNING),
            "snapshot_restore": (State.STANDBY, State.RUNNING),
            "pool": (None,),
            "pooled_fork": (None, State.RUNNING),
            "snapshot_pooled_fork": (None, State.RUNNING),
            "schedule": (None,),
            "restart": (State.STOPPED, State.RUNNING),
            "volume": (None, State.RUNNING),
            "volume_delete": (State.RUNNING, None),
        }[operation]
    )
    check_volume(daemon, operation, is_there=state is not None)
    if operation == "schedule":
        await check_schedule(daemon)
    if operation == "restart":
        record = daemon.fleet.get("new").record
        assert record.restarts.attempts == 1 or state is State.STOPPED
        assert record.restarts.attempts < 2
        assert state is State.RUNNING or judge_restart(record, 0.0).next_at is not None
    await check_snapshot(daemon)
    if state is None:
        return
    await daemon.fleet.bring_to("new", State.RUNNING)
    await check_well(daemon, "new")
    if operation not in MAKING:
        kept = await daemon.run("new", "read", "kept")
        assert kept == "yes" or (operation == "snapshot_restore" and kept == "no")
    await daemon.fleet.delete("new")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_daemon_killed_at_any_step_loses_no_guest_blocks_no_name_and_leaves_nothing_half_made(
    world: World, crashes: Crashes, operation: Operation
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "who", "src")
        assert (await daemon.fleet.fork("src", ["old"]))[0].error is None
        boot_ids = {name: (await daemon.memory(name))["boot_id"] for name in ("src", "old")}
        await prepare(daemon, operation)
    steps = crashes.find_steps(operation)
    assert {"Database.save 1", "end of Database.transaction 1"} <= set(steps)
    assert [step for step in steps if step.startswith(("FakeVm.", "FakeDriver."))]
    made = {"unpack 1", "make_file_system 1", "VolumeCatalog.add 1", "end of VolumeCatalog.coming 1"}
    assert operation != "volume" or made <= set(steps)
    lived = 0
    for step in ["", *steps]:
        with noted(step):
            if step:
                lived += not crashes.die(operation, step)
                assert len(world.processes()) >= len(boot_ids)
            async with world.daemon() as daemon:
                await pool_settled(daemon, 0)
                for snapshot in daemon.snapshots.list():
                    await pool_settled(daemon, 0, snapshot.id)
                await check_new(daemon, operation)
                for record in daemon.volumes.list():
                    await daemon.volumes.delete(record.id)
                await check_old(world, daemon, boot_ids)
                await prepare(daemon, operation)
    # What is done in the background, such as filling a pool, does not take the same steps each time.
    assert lived * LIVED_SHARE < len(steps), lived


@pytest.mark.parametrize("step", ["FakeVm.switch_disk 1", "FakeVm.save_devices 1", "end of FakeVm.paused 1"])
async def test_a_guest_that_was_paused_runs_again_before_anything_else_is_done(
    world: World, crashes: Crashes, step: str
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
    assert crashes.die("fork", step)
    faults = Faults()
    async with world.daemon(faults):
        # Of other guests, held at the same time, "top_layer" may be asked first.
        assert set(faults.calls[: faults.calls.index("resume")]) <= {
            "find",
            "adopt",
            "is_paused",
            "top_layer",
        }
