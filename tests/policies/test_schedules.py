"""Scheduled snapshots, by a keeper whose clock is turned by hand: each run once, whatever happens between."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.core.compression import NOT_SAID, CompressionAsk
from ramet.core.errors import Broken, RametError
from ramet.core.ids import CaptureId, InstanceId, LayerId, SnapshotId
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.snapshot_schedule import Retention, ScheduledRun, ScheduleRecord, SnapshotSchedule
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, RestorePoint, State
from ramet.instance.fleet_types import InstanceNotFound, InstanceView, WrongState
from ramet.policies.schedules import BeingDeleted, ScheduleKeeper, ScheduleNotFound
from tests.api.stand_in_schedules import MemorySchedules
from tests.waiting import until

pytestmark = pytest.mark.anyio

HOUR = 3600.0
HOURLY = SnapshotSchedule(HOUR, Retention(max_count=3), "nightly", {"of": "web"})
WEB = InstanceId("web")
SPEC = InstanceSpec("i", "d", "fake", 1, 1, 1)


class Host:
    """Instances, snapshots, schedules and a clock; it outlives its keepers, which are the daemons."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.schedules = MemorySchedules()
        self.snapshots: dict[str, SnapshotRecord] = {}
        self.instances: dict[str, InstanceRecord] = {}
        self.failure: RametError | None = None
        self.stuck: set[str] = set()
        self.attempts = self.made_count = 0
        self.gate: anyio.Event | None = None
        self.put(WEB)

    def put(self, name: str, state: State = State.RUNNING) -> InstanceRecord:
        identity = InstanceIdentity(InstanceId(name), name, None, "0" * 32, 0.0)
        self.instances[name] = InstanceRecord(SPEC, identity, state)
        return self.instances[name]

    def get(self, ref: str) -> InstanceView:
        if ref not in self.instances:
            raise InstanceNotFound(ref)
        return InstanceView(self.instances[ref])

    @property
    def runs(self) -> list[int]:
        return [one.run.number for one in self.snapshots.values() if one.run is not None]

    def list(self, *, source: str | None = None) -> Sequence[SnapshotRecord]:
        return [one for one in self.snapshots.values() if source in (None, one.source)]

    async def create(
        self,
        instance: str,
        kind: SnapshotKind,
        name: str | None,
        tags: Mapping[str, str],
        compression: CompressionAsk = NOT_SAID,
        *,
        run: ScheduledRun | None = None,
    ) -> SnapshotRecord:
        self.attempts += 1
        if self.gate is not None:
            await self.gate.wait()
        await anyio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        source = self.get(instance).record
        capture = CaptureId("c") if kind is SnapshotKind.STANDBY else None
        self.made_count += 1
        record = SnapshotRecord(
            SnapshotId(f"snap-{self.made_count}"),
            name,
            kind,
            source.id,
            source.name,
            SPEC,
            RestorePoint(LayerId("l"), capture),
            self.now,
            0,
            0,
            tags,
            run=run,
        )
        self.snapshots[record.id] = record
        return record

    async def delete(self, ref: str) -> None:
        if ref in self.stuck:
            self.stuck.remove(ref)
            raise Broken("the disk refuses")
        del self.snapshots[ref]

    @property
    def schedule(self) -> ScheduleRecord:
        return self.schedules.records[WEB]

    @asynccontextmanager
    async def daemon(self, retry_s: float = 1.0) -> AsyncIterator[ScheduleKeeper]:
        keeper = ScheduleKeeper(self, self, self.schedules, lambda: self.now, retry_s)
        async with anyio.create_task_group() as group:
            group.start_soon(keeper.run, list(self.instances.values()))
            await settle()
            yield keeper
            group.cancel_scope.cancel()

    async def turn(self, keeper: ScheduleKeeper, at: float) -> None:
        """Have the time be `at`, and whoever waits for it look at the clock."""
        self.now = at
        keeper._due._is_sooner.set()
        await settle()


async def settle() -> None:
    """Let everybody do what there is to do now."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def host() -> Host:
    return Host()


async def test_a_snapshot_is_taken_when_it_is_time_and_not_before(host: Host) -> None:
    async with host.daemon() as keeper:
        made = keeper.put("web", HOURLY)
        assert host.now + HOUR <= made.next_run_at <= host.now + HOUR + 60
        await host.turn(keeper, made.next_run_at - 1)
        assert host.snapshots == {}
        await host.turn(keeper, made.next_run_at)
        (taken,) = host.snapshots.values()
        assert (taken.kind, taken.tags, taken.run) == (SnapshotKind.STANDBY, {"of": "web"}, made.coming)
        assert taken.name is not None
        assert taken.name.startswith("nightly-19700112-")
        found = keeper.get("web")
        assert (found.last_run_at, found.last_snapshot, found.last_error) == (host.now, taken.id, "")
        assert (found.next_run_at, found.next_run) == (made.next_run_at + HOUR, 2)
        assert host.schedule == found


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (State.RUNNING, SnapshotKind.STANDBY),
        (State.STANDBY, SnapshotKind.STANDBY),
        (State.STOPPED, SnapshotKind.STOPPED),
    ],
)
async def test_what_is_taken_is_what_the_state_allows(host: Host, state: State, kind: SnapshotKind) -> None:
    host.put("web", state)
    async with host.daemon() as keeper:
        await host.turn(keeper, keeper.put("web", HOURLY).next_run_at)
    assert [one.kind for one in host.snapshots.values()] == [kind]


async def test_what_was_missed_without_a_daemon_is_made_up_for_once(host: Host) -> None:
    async with host.daemon() as keeper:
        first = keeper.put("web", HOURLY).next_run_at
    host.now = first + 10 * HOUR + 5
    async with host.daemon() as keeper:
        assert host.runs == [1]
        assert keeper.get("web").next_run_at == first + 11 * HOUR
        await host.turn(keeper, first + 11 * HOUR)
        assert host.runs == [1, 2]


@pytest.mark.parametrize("away_s", [0.0, 60.0, 2.5 * HOUR])
async def test_a_run_that_was_not_noted_is_not_done_again(host: Host, away_s: float) -> None:
    async with host.daemon() as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        before = host.schedule
        await host.turn(keeper, due)
    assert host.schedule.next_run == 2
    host.schedules.records[WEB] = before  # Killed between the two.
    host.now = due + away_s
    async with host.daemon() as keeper:
        assert host.runs == ([1] if away_s < HOUR else [1, 2])
        noted = keeper.get("web")
        assert noted.next_run == len(host.runs) + 1
        assert noted.last_snapshot == list(host.snapshots)[-1]
        assert noted.next_run_at == due + HOUR * (1 if away_s < HOUR else 3)


async def test_a_run_that_was_cut_short_is_done_by_the_next_daemon(host: Host) -> None:
    async with host.daemon() as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        host.gate = anyio.Event()
        await host.turn(keeper, due)
        assert host.attempts == 1
    host.gate = None
    async with host.daemon():
        assert (host.attempts, host.runs) == (2, [1])


async def test_a_run_that_fails_says_why_and_the_next_is_done(host: Host) -> None:
    async with host.daemon() as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        host.failure = Broken("the disk is full")
        await host.turn(keeper, due)
        failed = keeper.get("web")
        assert (failed.last_error, failed.last_run_at) == ("the disk is full", due)
        assert (failed.last_snapshot, failed.next_run_at) == (None, due + HOUR)
        host.failure = None
        await host.turn(keeper, due + HOUR)
        again = keeper.get("web")
        assert (again.last_error, again.last_snapshot) == ("", "snap-1")
        assert host.runs == [2]


async def test_a_run_waits_for_an_instance_on_its_way_but_not_for_long(host: Host) -> None:
    async with host.daemon(retry_s=5.0) as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        host.put("web", State.PAUSED)
        await host.turn(keeper, due)
        assert (host.runs, keeper.get("web").last_run_at) == ([], None)
        host.put("web", State.STANDBY)
        await host.turn(keeper, due + 5)
        assert host.runs == [1]
        assert keeper.get("web").next_run_at == due + HOUR
        host.put("web", State.UNKNOWN)
        await host.turn(keeper, due + HOUR + 31)
        assert keeper.get("web").last_error.startswith("instance web is Unknown")
        assert host.runs == [1]


async def test_an_instance_that_changes_while_it_is_taken_is_tried_again(host: Host) -> None:
    async with host.daemon(retry_s=5.0) as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        host.failure = WrongState("it has just stopped")
        await host.turn(keeper, due)
        host.failure = None
        await host.turn(keeper, due + 5)
        assert host.runs == [1]


async def test_only_the_newest_of_its_own_snapshots_are_kept(host: Host) -> None:
    foreign = await host.create("web", SnapshotKind.STANDBY, "mine", {})
    other = await host.create("web", SnapshotKind.STANDBY, None, {}, run=ScheduledRun("other", 1))
    async with host.daemon() as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        for number in range(6):
            await host.turn(keeper, due + number * HOUR)
        assert [one.run.number for one in host.list() if one.run and one.run != other.run] == [4, 5, 6]
        keeper.put("web", replace(HOURLY, retention=Retention(max_count=1)))
        await settle()
        assert [one.run.number for one in host.list() if one.run and one.run != other.run] == [6]
    assert {foreign.id, other.id} <= host.snapshots.keys()


async def test_a_snapshot_that_becomes_too_old_goes_between_two_runs(host: Host) -> None:
    async with host.daemon() as keeper:
        due = keeper.put("web", replace(HOURLY, retention=Retention(max_age_s=600.0))).next_run_at
        await host.turn(keeper, due)
        await host.turn(keeper, due + 599)
        assert host.runs == [1]
        await host.turn(keeper, due + 600)
        assert host.runs == []
        assert keeper.get("web").next_run_at == due + HOUR


async def test_what_cannot_be_removed_is_tried_again_later(host: Host) -> None:
    async with host.daemon() as keeper:
        due = keeper.put("web", replace(HOURLY, retention=Retention(max_count=1))).next_run_at
        await host.turn(keeper, due)
        host.stuck.add("snap-1")
        await host.turn(keeper, due + HOUR)
        assert host.runs == [1, 2]
        await host.turn(keeper, due + HOUR + 60)
        assert host.runs == [2]


async def test_another_interval_counts_from_now_and_the_same_does_not(host: Host) -> None:
    async with host.daemon() as keeper:
        first = keeper.put("web", HOURLY)
        host.now += 600
        same = keeper.put("web", replace(HOURLY, name_prefix=None))
        assert (same.id, same.next_run_at) == (first.id, first.next_run_at)
        assert (same.created_at, same.updated_at) == (first.created_at, host.now)
        sooner = keeper.put("web", replace(HOURLY, interval_s=60.0))
        assert host.now + 60 <= sooner.next_run_at <= host.now + 66
        await host.turn(keeper, sooner.next_run_at)
        assert host.runs == [1]


@pytest.mark.parametrize("becomes", ["deleted", "replaced", "changed"])
async def test_what_is_changed_while_a_run_goes_on_stays_changed(host: Host, becomes: str) -> None:
    async with host.daemon() as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        host.gate = anyio.Event()
        await host.turn(keeper, due)
        if becomes == "changed":
            keeper.put("web", replace(HOURLY, interval_s=60.0))
        else:
            keeper.delete("web")
            if becomes == "replaced":
                keeper.put("web", HOURLY)
        host.gate.set()
        await settle()
        assert host.runs == [1]
        if becomes == "deleted":
            with pytest.raises(ScheduleNotFound):
                keeper.get("web")
            return
        found = keeper.get("web")
        assert (found.next_run, found.last_snapshot) == ((2, "snap-1") if becomes == "changed" else (1, None))
        assert due < found.next_run_at
        await host.turn(keeper, found.next_run_at)
        assert len(host.snapshots) == 2


async def test_a_clock_that_is_set_back_makes_no_run_further_than_the_interval(host: Host) -> None:
    async with host.daemon() as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        await host.turn(keeper, due - 30 * 24 * HOUR)
        await host.turn(keeper, host.now + HOUR + 60)
        assert host.runs == [1]
        await host.turn(keeper, host.now + HOUR + 60)
        assert host.runs == [1, 2]


async def test_a_schedule_stays_while_its_instance_is_deleted_and_if_that_fails(host: Host) -> None:
    async with host.daemon() as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        whole = host.instances["web"]
        host.instances["web"] = replace(whole, is_deleting=True, state=State.SHUTDOWN)
    async with host.daemon() as keeper:  # Which goes on with the deletion, and the host refuses.
        host.instances["web"] = replace(whole, state=State.UNKNOWN)
        await host.turn(keeper, due)
    host.instances["web"] = replace(whole, state=State.STOPPED)  # Next time it is found as it was.
    async with host.daemon() as keeper:
        assert keeper.get("web").next_run == 2
    assert host.runs == [1]


async def test_a_schedule_goes_with_its_instance_and_its_snapshots_stay(host: Host) -> None:
    host.put("other")
    async with host.daemon() as keeper:
        due = keeper.put("web", HOURLY).next_run_at
        keeper.put("other", HOURLY)
        await host.turn(keeper, due + 60)
        del host.instances["web"]
        keeper.see_gone(WEB)
        assert set(host.schedules.records) == {"other"}
        await host.turn(keeper, due + 5 * HOUR)
        assert len(host.list(source="web")) == 1
    del host.instances["other"]  # Killed before the schedule of what was deleted went.
    async with host.daemon():
        assert host.schedules.records == {}


async def test_what_is_made_or_deleted_has_no_schedule(host: Host) -> None:
    host.put("made", State.CREATED)
    host.instances["going"] = replace(host.put("going"), is_deleting=True)
    async with host.daemon() as keeper:
        for name in ("made", "going"):
            with pytest.raises(BeingDeleted):
                keeper.put(name, HOURLY)
        for call in (keeper.get, keeper.delete):
            with pytest.raises(ScheduleNotFound):
                call("web")
            with pytest.raises(InstanceNotFound):
                call("nobody")


async def test_what_cannot_be_written_down_changes_nothing(host: Host) -> None:
    async with host.daemon() as keeper:
        host.schedules.failing = 1
        with pytest.raises(RametError):
            keeper.put("web", HOURLY)
        with pytest.raises(ScheduleNotFound):
            keeper.get("web")
        due = keeper.put("web", HOURLY).next_run_at
        host.schedules.failing = 1
        with pytest.raises(RametError):
            keeper.delete("web")
        host.schedules.failing = 2
        await host.turn(keeper, due)  # The snapshot is there, and the disk refuses the note, twice.
        assert (host.runs, host.schedule.next_run) == ([1], 1)
        await host.turn(keeper, due + 1)  # It is tried again, by itself: the snapshot may be deleted.
        assert (host.runs, host.schedule) == ([1], keeper.get("web"))
        assert host.schedule.next_run == 2
        await host.turn(keeper, due + HOUR)
        assert (host.runs, host.schedule.next_run) == ([1, 2], 3)


async def test_a_damaged_schedule_is_shown_as_such_and_can_be_set_again(host: Host) -> None:
    host.schedules.damaged[WEB] = Broken("cannot be read")
    async with host.daemon() as keeper:
        with pytest.raises(Broken, match="cannot be read"):
            keeper.get("web")
        keeper.put("web", HOURLY)
        assert keeper.get("web").schedule == HOURLY


async def test_many_that_are_due_at_once_run_two_at_a_time_and_all_of_them(host: Host) -> None:
    names = [f"n{number}" for number in range(50)]
    for name in names:
        host.put(name)
    async with host.daemon() as keeper:
        for name in names:
            keeper.put(name, HOURLY)
        host.gate = anyio.Event()
        await host.turn(keeper, host.now + 2 * HOUR)
        assert host.attempts == 2
        host.gate.set()
        await until(lambda: len(host.snapshots) == len(names))
    assert {one.source for one in host.snapshots.values()} == set(names)


async def test_the_clock_of_the_host_does_as_well(host: Host) -> None:
    host.now = time.time()
    keeper = ScheduleKeeper(host, host, host.schedules)
    made = keeper.put("web", HOURLY)
    host.schedules.records[WEB] = replace(made, next_run_at=time.time() + 0.05)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, list(host.instances.values()))
        await until(lambda: host.runs == [1])
        group.cancel_scope.cancel()
