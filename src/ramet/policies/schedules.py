"""Takes snapshots of instances by schedule, and removes those that are too many or too old.

A run is neither lost nor doubled, whenever the daemon is killed. A snapshot says of which run it is, and is
written before the schedule is: what a starting daemon finds of a run that the schedule thinks is still to
come is noted as its outcome. Without it, the run has not been, and is made up for.

A snapshot is removed only if it says that it is of this very schedule. One that replaced it goes on with
them; one that was deleted leaves them for good.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

import anyio
import structlog

from ramet.core.compression import NOT_SAID, CompressionAsk
from ramet.core.errors import Conflict, NotFound, RametError
from ramet.core.ids import InstanceId, SnapshotId, mint_id
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.snapshot_schedule import ScheduledRun, ScheduleRecord, SnapshotSchedule
from ramet.core.spec import InstanceRecord, State
from ramet.instance.fleet_types import InstanceView, WrongState
from ramet.policies.due import DueTimes
from ramet.policies.schedule import (
    KIND_OF,
    first_run,
    name_of,
    next_outdated,
    outdated,
    run_after,
    within_reach,
)

MAX_CONCURRENT: Final = 2
"""Each writes a guest's memory to the disk that all the others use."""
GRACE_S: Final = 30.0
"""For so long a run waits for an instance that is on its way from one state to another."""
RETRY_S: Final = 1.0
REMOVAL_RETRY_S: Final = 60.0
ERROR_LENGTH_MAX: Final = 500

log = structlog.get_logger(__name__)


class ScheduleNotFound(NotFound):
    """The instance has no snapshot schedule."""

    code = "snapshot_schedule_not_found"


class BeingDeleted(Conflict):
    """The instance is just being made or deleted, and can have no schedule."""

    code = "instance_not_schedulable"


class Instances(Protocol):
    """The instances: `ramet.instance.fleet.Fleet`."""

    def get(self, ref: str) -> InstanceView: ...


class Snapshots(Protocol):
    """The snapshots: `ramet.effects.snapshots.NamedSnapshots`."""

    def list(self, *, source: str | None = None) -> Sequence[SnapshotRecord]: ...

    async def create(
        self,
        instance: str,
        kind: SnapshotKind,
        name: str | None,
        tags: Mapping[str, str],
        compression: CompressionAsk = ...,
        *,
        run: ScheduledRun | None = None,
    ) -> SnapshotRecord: ...

    async def delete(self, ref: str) -> None: ...


class Schedules(Protocol):
    """The schedules on the disk: `ramet.snapshots.schedules.ScheduleStore`."""

    def load(self) -> tuple[Collection[ScheduleRecord], Mapping[InstanceId, RametError]]:
        """Return those that can be read, and why the others cannot."""
        ...

    def save(self, record: ScheduleRecord) -> None:
        """Write one down, durable when this returns. Raises RametError: the disk refuses."""
        ...

    def remove(self, instance: InstanceId) -> None:
        """Remove that of an instance, if there is one. Raises RametError: the disk refuses."""
        ...


class ScheduleKeeper:
    """Follows the schedules of all instances. `now` returns Unix seconds."""

    def __init__(
        self,
        fleet: Instances,
        snapshots: Snapshots,
        schedules: Schedules,
        now: Callable[[], float] = time.time,
        retry_s: float = RETRY_S,
    ) -> None:
        self._fleet, self._snapshots, self._schedules = fleet, snapshots, schedules
        self._now, self._retry_s = now, retry_s
        self._records: dict[InstanceId, ScheduleRecord] = {}
        self._damaged: dict[InstanceId, RametError] = {}
        self._at_work: set[InstanceId] = set()
        self._unnoted: set[InstanceId] = set()
        """Of whom the disk does not tell yet how far they have come, as it refused; that is tried again."""
        self._due = DueTimes(now)
        self._places = anyio.Semaphore(MAX_CONCURRENT)
        self._started_at = now()

    # What happens

    def see_gone(self, instance: InstanceId) -> None:
        """Take note that an instance is gone, and its schedule with it. Never fails.

        Not before: a deletion may fail, and the instance be there again as it was.
        """
        if instance in self._records or instance in self._damaged:
            self._forget(instance)

    async def run(self, found: Iterable[InstanceRecord] = ()) -> None:
        """Follow the schedules, until cancelled. `found`: the instances there are already."""
        self._take_up({record.id for record in found})
        async with anyio.create_task_group() as group:
            while True:
                instance = await self._due.next()
                if instance in self._records and instance not in self._at_work:
                    self._at_work.add(instance)
                    group.start_soon(self._work, instance)

    # What is asked

    def get(self, ref: str) -> ScheduleRecord:
        """Return the schedule of an instance.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            ScheduleNotFound: it has none.
            RametError: what there is of it cannot be read.
        """
        instance = self._fleet.get(ref).record
        if instance.id in self._damaged:
            raise self._damaged[instance.id]
        if instance.id not in self._records:
            raise ScheduleNotFound(
                f"instance {instance.name} has no snapshot schedule",
                remedy=f"ramet snapshot schedule set {instance.name} --interval 1h --max-count 24",
            )
        return self._records[instance.id]

    def put(self, ref: str, schedule: SnapshotSchedule) -> ScheduleRecord:
        """Have snapshots of an instance be taken like that from now on; durable when this returns.

        In the place of an earlier schedule, it goes on with its snapshots; with the same interval at the same
        times, too.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            BeingDeleted: it is being made or deleted.
            RametError: it cannot be written down; nothing was changed.
        """
        instance, now = self._fleet.get(ref).record, self._now()
        if instance.is_deleting or instance.state is State.CREATED:
            raise BeingDeleted(
                f"instance {instance.name} is just being made or deleted",
                remedy="wait until it is there",
                state=instance.state,
            )
        before = self._records.get(instance.id)
        at = first_run(instance.id, schedule.interval_s, now)
        if before is None:
            record = ScheduleRecord(mint_id(), instance.id, schedule, now, now, at)
        else:
            if before.schedule.interval_s == schedule.interval_s:
                at = before.next_run_at
            record = replace(before, schedule=schedule, updated_at=now, next_run_at=at)
        self._schedules.save(record)
        self._records[instance.id] = record
        self._unnoted.discard(instance.id)
        self._damaged.pop(instance.id, None)
        self._plan(instance.id)
        return record

    def delete(self, ref: str) -> None:
        """Take no more snapshots of an instance by schedule; those there are stay.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            ScheduleNotFound: it has none.
            RametError: it cannot be removed; nothing was changed.
        """
        instance = self._fleet.get(ref).record.id
        if instance not in self._damaged:
            self.get(ref)
        self._schedules.remove(instance)
        self._records.pop(instance, None)
        self._damaged.pop(instance, None)

    # How it goes

    def _take_up(self, instances: Collection[InstanceId]) -> None:
        """Read the schedules, and note what became of runs that a daemon did not live to note."""
        records, damaged = self._schedules.load()
        made: dict[str, list[SnapshotRecord]] = defaultdict(list)
        for snapshot in self._snapshots.list():
            if snapshot.run is not None:
                made[snapshot.run.schedule].append(snapshot)
        self._started_at = self._now()
        for instance, error in damaged.items():
            log.error("snapshot_schedule_unreadable", instance=instance, error=str(error))
            self._damaged[instance] = error
        for record in records:
            self._records[record.instance] = record
            self._note_unnoted(record, made[record.id])
            self._plan(record.instance, own=made[record.id])
        for gone in (self._records.keys() | self._damaged.keys()) - set(instances):
            self._forget(gone)

    def _note_unnoted(self, record: ScheduleRecord, own: Iterable[SnapshotRecord]) -> None:
        runs = {one.run.number: one for one in own if one.run is not None}
        newest = max(runs, default=0)
        if newest >= record.next_run:
            log.info("scheduled_run_found_done", instance=record.instance, run=newest)
            at = runs[newest].created_at
            # What was missed since then is made up for.
            self._note(replace(record, next_run=newest), at, runs[newest].id, "", after=at)

    async def _work(self, instance: InstanceId) -> None:
        wait_s = 0.0
        try:
            async with self._places:
                record = self._records.get(instance)
                if record is not None and record.next_run_at <= self._now():
                    wait_s = await self._run_once(record)
                wait_s = max(wait_s, await self._remove_outdated(instance))
                if instance in self._unnoted:
                    self._write_down(instance)
        finally:
            self._at_work.discard(instance)
        self._plan(instance, wait_s=wait_s)

    async def _run_once(self, record: ScheduleRecord) -> float:
        """Take a snapshot, or note why not; returns how long to wait if it is to be tried again."""
        instance, schedule, began_at = record.instance, record.schedule, self._now()
        try:
            found = self._fleet.get(instance).record
            if found.state not in KIND_OF:
                raise WrongState(f"instance {found.name} is {found.state}", state=found.state)
            snapshot = await self._snapshots.create(
                instance,
                KIND_OF[found.state],
                name_of(schedule.name_prefix, began_at),
                schedule.tags,
                NOT_SAID,
                run=record.coming,
            )
        except RametError as error:
            waited_since = max(record.next_run_at, self._started_at)
            if isinstance(error, WrongState) and began_at < waited_since + GRACE_S:
                return self._retry_s
            log.warning("scheduled_snapshot_not_taken", instance=instance, error=str(error))
            self._note(record, began_at, None, str(error)[:ERROR_LENGTH_MAX], after=self._now())
        else:
            log.info("scheduled_snapshot_taken", instance=instance, snapshot=snapshot.id)
            self._note(record, began_at, snapshot.id, "", after=self._now())
        return 0.0

    def _note(
        self, run: ScheduleRecord, at: float, snapshot: SnapshotId | None, error: str, *, after: float
    ) -> None:
        """Write down what became of the run that was to come by `run`, if that is still the schedule.

        The next comes after `after`.
        """
        record = self._records.get(run.instance)
        if record is None or record.id != run.id:
            return  # Deleted meanwhile, or in another's place.
        due = record.next_run_at
        if due == run.next_run_at:
            due = run_after(within_reach(run, at), record.schedule.interval_s, after)
        record = replace(
            record,
            next_run=run.next_run + 1,
            next_run_at=due,
            last_run_at=at,
            last_snapshot=snapshot or record.last_snapshot,
            last_error=error,
        )
        self._records[record.instance] = record
        self._write_down(record.instance)

    def _write_down(self, instance: InstanceId) -> None:
        """Have the disk tell how far a schedule has come; if it refuses, that is tried again.

        Until then, what was taken tells by itself; but it may be deleted.
        """
        record = self._records.get(instance)
        if record is None:
            self._unnoted.discard(instance)
            return
        try:
            self._schedules.save(record)
        except RametError as error:
            if instance not in self._unnoted:
                log.error("scheduled_run_not_noted", instance=instance, error=str(error))
            self._unnoted.add(instance)
        else:
            self._unnoted.discard(instance)

    async def _remove_outdated(self, instance: InstanceId) -> float:
        """Remove what is not kept; returns how long to wait before what could not be is tried again."""
        record = self._records.get(instance)
        if record is None:
            return 0.0
        wait_s = 0.0
        for snapshot in outdated(self._own(record), record.schedule.retention, self._now()):
            try:
                await self._snapshots.delete(snapshot.id)
            except NotFound:
                continue
            except RametError as error:
                log.warning("scheduled_snapshot_not_removed", snapshot=snapshot.id, error=str(error))
                wait_s = REMOVAL_RETRY_S
            else:
                log.info("scheduled_snapshot_removed", instance=instance, snapshot=snapshot.id)
        return wait_s

    def _own(self, record: ScheduleRecord) -> list[SnapshotRecord]:
        """Return the snapshots that a schedule has made."""
        return [
            one
            for one in self._snapshots.list(source=record.instance)
            if one.run is not None and one.run.schedule == record.id
        ]

    def _plan(
        self, instance: InstanceId, *, own: Collection[SnapshotRecord] | None = None, wait_s: float = 0.0
    ) -> None:
        """Have a schedule be looked at when something is to be done by it, in `wait_s` at the earliest."""
        record, now = self._records.get(instance), self._now()
        if record is None or instance in self._at_work:
            return
        retention = record.schedule.retention
        own = self._own(record) if own is None else own
        at = within_reach(record, now)
        if at < record.next_run_at:  # Of a clock that was set back, and once: it comes nearer from here on.
            self._records[instance] = replace(record, next_run_at=at)
            self._unnoted.add(instance)
        if outdated(own, retention, now):
            at = now
        if instance in self._unnoted:
            at = min(at, now + self._retry_s)
        too_old_at = next_outdated(own, retention)
        self._due.put(max(min(at, too_old_at or at), now + wait_s), instance)

    def _forget(self, instance: InstanceId) -> None:
        self._records.pop(instance, None)
        self._damaged.pop(instance, None)
        try:
            self._schedules.remove(instance)
        except RametError as error:  # The next start finds that its instance is gone.
            log.warning("snapshot_schedule_not_removed", instance=instance, error=str(error))
