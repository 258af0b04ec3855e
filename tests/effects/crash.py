"""Daemons killed (SIGKILL) in the middle of an operation: python -m tests.effects.crash FOLDER IMAGES

For each line "OPERATION;STEP" on stdin, a daemon takes over the host in FOLDER, begins the operation and dies
when it is about to take the step (see `tests.steps`). It answers with a line: how the process ended. Without
a step it lives, and has written the steps it took into FOLDER/steps.
"""

import gc
import io
import os
import signal
import sys
import tarfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast, get_args

import anyio
import anyio.lowlevel

from ramet.core.ids import InstanceId
from ramet.core.snapshot import SnapshotKind
from ramet.core.snapshot_schedule import ScheduleRecord
from ramet.core.spec import State
from ramet.core.supervision import judge_restart
from ramet.core.volumes import VolumeMount
from ramet.effects import performer
from ramet.effects.site import Rig
from ramet.effects.thaw import thaw
from ramet.policies.schedules import ScheduleKeeper
from ramet.snapshots.schedules import ScheduleStore
from ramet.vmm.fake.driver import MARK
from ramet.vmm.fake.nursery import Nursery
from tests.effects.world import Daemon, World
from tests.steps import watch_steps

SETTLE_TIMEOUT_S = 20.0
VOLUME_BYTES = 4 << 20
Operation = Literal[
    "create",
    "fork",
    "stop",
    "start",
    "delete",
    "standby",
    "restore",
    "copy",
    "snapshot",
    "snapshot_fork",
    "snapshot_restore",
    "pool",
    "pooled_fork",
    "snapshot_pooled_fork",
    "schedule",
    "restart",
    "volume",
    "volume_delete",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
"""All make, change or remove "new"; "fork" and "copy" make it of "src", "snapshot_fork" of "kept".

"pool" has a berth of "src" made and ended, "pooled_fork" makes "new" in one, "snapshot_pooled_fork" in one of
"kept". "schedule" has the next run of the schedule of "src" be done, and what is not kept removed. "restart"
has "new" be started as its restart policy says. "volume" makes a volume "new", of an archive, and "new" with
it; "volume_delete" removes both.
"""

LEAVING: tuple[Operation, ...] = ("create", "pooled_fork", "snapshot_pooled_fork")
"""Those after which the steps of a daemon that leaves count, too: one leaves like another, but for a pool."""


async def limits_settled(daemon: Daemon) -> None:
    """Return when the limits of all TAPs found at the start have been looked at: no operation does that."""
    with anyio.fail_after(SETTLE_TIMEOUT_S):
        while True:
            network = daemon.site.network.statistics()
            shaping = network.shaping
            counts = (shaping.applied_count, shaping.kept_count, shaping.skipped_count, shaping.failed_count)
            if not shaping.waiting_count and sum(counts) >= network.attached_count:
                return
            await anyio.lowlevel.checkpoint()


async def pool_settled(daemon: Daemon, size: int, snapshot: str = "") -> None:
    """Have the pool of "src", or of a snapshot, be of a size; returns when it is, without a step to look."""
    if snapshot:
        source: str = daemon.snapshots.set_fork_pool(snapshot, size).id
    else:
        source = (await daemon.fleet.set_fork_pool("src", size)).record.id
    pools = daemon.fleet._host.pools  # type: ignore[attr-defined]
    with anyio.fail_after(SETTLE_TIMEOUT_S):
        while True:
            status = pools.status(source)
            if status is None if size == 0 else status is not None and status.waiting_count == size:
                return
            await anyio.lowlevel.checkpoint()


async def schedule_run(daemon: Daemon) -> ScheduleRecord:
    """Have the run of the schedule of "src" that is due be done, and return the schedule then."""
    store = ScheduleStore(daemon.site.folder.schedules)
    keeper = ScheduleKeeper(daemon.fleet, daemon.snapshots, store)
    source = daemon.fleet.get("src").record
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, [source])
        with anyio.fail_after(SETTLE_TIMEOUT_S):
            await anyio.lowlevel.checkpoint()
            while True:
                record = keeper.get("src")
                own = [one for one in daemon.snapshots.list(source=source.id) if one.run is not None]
                if record.next_run_at > time.time() and len(own) <= (
                    record.schedule.retention.max_count or 0
                ):
                    break
                await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return record


async def restart_due(daemon: Daemon) -> None:
    """Return when "new" is to be started by itself."""
    next_at = judge_restart(daemon.fleet.get("new").record, time.time()).next_at
    assert next_at is not None
    while time.time() < next_at:
        await anyio.lowlevel.checkpoint()


async def released(daemon: Daemon, instance: InstanceId) -> None:
    """Return when all that only a run of an instance needed has been given back."""
    turn = daemon.fleet._host._turns[instance]  # type: ignore[attr-defined]
    while instance in daemon.site.rigs or turn.locked():
        await anyio.lowlevel.checkpoint()


async def packed() -> AsyncIterator[bytes]:
    """Yield a tar archive with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = 7
        tar.addfile(info, io.BytesIO(b"content"))
    yield buffer.getvalue()


async def create_with_volume(daemon: Daemon) -> None:
    """Make a volume "new" of an archive, and "new", which writes to it."""
    volume = await daemon.volumes.create("new", VOLUME_BYTES, {}, archive=packed())
    await daemon.fleet.create("new", replace(daemon.spec, volumes=(VolumeMount(volume.id, "/data"),)))


class Mortal:
    """A daemon that this process, or rather a copy of it, is to be."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.world = World(folder, images)
        self.nursery = self.world.nursery = Nursery(MARK)
        self.taken: list[str] = []
        self.deadly = ""
        self.steps = watch_steps(self.reach)
        self._thawed_count = 0

        async def counted(rig: Rig) -> None:
            await thaw(rig)
            self._thawed_count += 1

        vars(performer)["thaw"] = counted

    async def thaws_settled(self, daemon: Daemon) -> None:
        """Return when all guests found at the start have been thawed: no operation does that."""
        found_count = len(daemon.site.rigs)
        with anyio.fail_after(SETTLE_TIMEOUT_S):
            while self._thawed_count < found_count:
                await anyio.lowlevel.checkpoint()

    def reach(self, step: str) -> None:
        self.taken.append(step)
        if step == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()

    async def operate(self, operation: Operation) -> None:
        async with self.world.daemon() as daemon:
            await self.thaws_settled(daemon)
            await limits_settled(daemon)
            if operation == "pooled_fork":
                await pool_settled(daemon, 1)
            elif operation == "snapshot_pooled_fork":
                await pool_settled(daemon, 1, "kept")
            elif operation == "restart":
                await restart_due(daemon)
            self.steps.begin()
            match operation:
                case "create":
                    await daemon.fleet.create("new", daemon.spec)
                case "fork":
                    assert (await daemon.fleet.fork("src", ["new"]))[0].error is None
                case "stop":
                    await released(daemon, (await daemon.fleet.stop("new")).record.id)
                case "start":
                    await daemon.fleet.start("new")
                case "restart":
                    await daemon.fleet.restart("new")
                case "delete":
                    await daemon.fleet.delete("new")
                case "standby":
                    await released(daemon, (await daemon.fleet.standby("new")).record.id)
                case "restore":
                    await daemon.fleet.restore("new")
                case "copy":
                    (outcome,) = await daemon.fleet.fork("src", ["new"], target=State.STANDBY)
                    assert outcome.view is not None, outcome.error
                    await released(daemon, outcome.view.record.id)
                case "snapshot":
                    await daemon.snapshots.create("src", SnapshotKind.STANDBY, "kept", {})
                case "snapshot_fork":
                    assert (await daemon.snapshots.fork("kept", ["new"]))[0].error is None
                case "snapshot_restore":
                    await daemon.snapshots.restore("new", "kept")
                case "volume":
                    await create_with_volume(daemon)
                case "volume_delete":
                    await daemon.fleet.delete("new")
                    await daemon.volumes.delete("new")
                case "schedule":
                    await schedule_run(daemon)
                case "pool":
                    await pool_settled(daemon, 1)
                    await pool_settled(daemon, 0)
                case "pooled_fork":
                    assert (await daemon.fleet.fork("src", ["new"]))[0].error is None
                    await pool_settled(daemon, 1)
                case "snapshot_pooled_fork":
                    assert (await daemon.snapshots.fork("kept", ["new"]))[0].error is None
                    await pool_settled(daemon, 1, "kept")
            if operation not in LEAVING:
                self.steps.end()
        if not self.deadly:
            (self.world.folder / "steps").write_text("\n".join(self.taken))


def main() -> None:
    mortal = Mortal(Path(sys.argv[1]), Path(sys.argv[2]))
    gc.collect()
    gc.freeze()  # What is shared with the daemons need not be looked through by each.
    for line in sys.stdin:
        operation, _, mortal.deadly = line.rstrip("\n").partition(";")
        child = os.fork()
        if child == 0:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Where its log goes.
            anyio.run(mortal.operate, cast(Operation, operation))
            return
        status = os.waitpid(child, 0)[1]
        mortal.nursery.settle()  # A VMM that it asked for is there, also if it did not live to hear of it.
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
