"""What a daemon keeps to on its own, in the random model: volumes, restart policies and snapshot schedules.

An instance here may write to a volume or read it, be started again when its run has ended, and have snapshots
taken of it by an hour that is turned by hand. What must hold of these is looked at with each record that is
written, and in each quiet moment; what a daemon saw is kept for the next one, so that what a kill loses or
does twice is seen.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio
from anyio.abc import TaskGroup

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId, VolumeId, mint_id
from ramet.core.restart import RestartPolicy, RestartWhen, RunEnd
from ramet.core.snapshot_schedule import Retention, ScheduleRecord, SnapshotSchedule
from ramet.core.spec import InstanceRecord, InstanceSpec
from ramet.core.volumes import VolumeMount
from ramet.effects import snapshots as named_snapshots
from ramet.instance.events import AttachAsked, DetachAsked
from ramet.instance.transitions import is_about_to_restart
from ramet.policies import schedules as schedule_policy
from ramet.policies.restarts import RestartKeeper
from ramet.policies.schedules import ScheduleKeeper
from ramet.snapshots.schedules import ScheduleStore
from tests.effects.model_oracle import demand, stored_records
from tests.effects.world import Daemon, World, performer_of

HOUR_S = 3600.0
REACH_S = HOUR_S + 60.0
"""How far a run can be away at most: the interval and its jitter."""
VOLUME_BYTES = 4 << 20
VOLUME_COUNT_HIGH = 3
KEPT_COUNT = 2
ATTEMPTS_MAX = 2
RETRY_S = 0.1
GRACE_S = 1.0
POLICIES = (
    None,
    RestartPolicy(RestartWhen.ALWAYS, 0.05, ATTEMPTS_MAX, 600.0),
    RestartPolicy(RestartWhen.ON_FAILURE, 0.05, ATTEMPTS_MAX, 600.0),
    RestartPolicy(RestartWhen.NEVER, 0.05, ATTEMPTS_MAX, 600.0),
)

Act = Callable[[], Awaitable[Any]]


class Kept:
    """What one daemon keeps to, and what must hold of it.

    Attributes:
        wrong: what did not hold when it was written down.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self.wrong: list[str] = []
        self._world, self._rng = world, rng
        self._notes = world.folder / "kept.json"
        found = json.loads(self._notes.read_text()) if self._notes.exists() else {}
        self._ahead_s: float = found.get("ahead_s", 0.0)
        self._runs: dict[str, tuple[int, float]] = {
            key: (number, at) for key, (number, at) in found.get("runs", {}).items()
        }
        """Of each schedule, by its id, the number and the time of its next run when it was last quiet."""
        self._former = stored_records(world)
        self._schedules: ScheduleKeeper | None = None
        for module, name in ((schedule_policy, "REMOVAL_RETRY_S"), (schedule_policy, "RETRY_S")):
            setattr(module, name, RETRY_S)
        setattr(schedule_policy, "GRACE_S", GRACE_S)  # noqa: B010
        setattr(named_snapshots, "time", SimpleNamespace(time=self.now))  # noqa: B010

    def now(self) -> float:
        """Return the time by which schedules run: the host's, and the hours that it was turned ahead."""
        return time.time() + self._ahead_s

    def begin(self, daemon: Daemon, group: TaskGroup) -> None:
        """Keep what is there to its rules, from here on."""
        self._schedules = ScheduleKeeper(
            daemon.fleet, daemon.snapshots, ScheduleStore(daemon.site.folder.schedules), self.now, RETRY_S
        )
        restarts = RestartKeeper(daemon.fleet, chance=lambda: 0.0, retry_s=RETRY_S)

        def see(record: InstanceRecord) -> None:
            self._look_at(daemon, record)
            restarts.see(record)

        performer_of(daemon.fleet).watch(see, self._schedules.see_gone)
        found = [view.record for view in daemon.fleet.list()]
        group.start_soon(restarts.run, found)
        group.start_soon(self._schedules.run, found)

    # Operations

    def spec(self, daemon: Daemon) -> InstanceSpec:
        """Return what an instance is to be that is made now."""
        volumes = daemon.volumes.list()
        mounts = [self._mount(self._rng.choice(volumes).id)] if volumes and self._rng.random() < 0.5 else []
        policy = self._rng.choice(POLICIES)
        return replace(daemon.spec, restart_policy=policy, volumes=tuple(mounts))

    def weights(self, daemon: Daemon, names: Sequence[str]) -> dict[str, int]:
        """Return the operations that there are, each with how often it is to be drawn."""
        volumes = len(daemon.volumes.list())
        weights = {"volume": 3 if volumes < VOLUME_COUNT_HIGH else 0, "turn": 4}
        if volumes:
            weights |= {"volume delete": 2, "attach": 5 if names else 0, "detach": 3 if names else 0}
        if names:
            weights |= {"policy": 3, "schedule": 4, "unschedule": 1}
        return weights

    def act(self, daemon: Daemon, what: str, name: str) -> Act | None:
        """Return what that operation does, to the instance `name` if to any; None: it is none of these."""
        volumes, fleet = daemon.volumes.list(), daemon.fleet
        volume = self._rng.choice(volumes).id if volumes else VolumeId("none")
        match what:
            case "volume":
                return partial(for_client, daemon.volumes.create, f"v{mint_id()[:8]}", VOLUME_BYTES, {})
            case "volume delete":
                return partial(for_client, daemon.volumes.delete, volume)
            case "attach":
                return partial(fleet.change_volumes, name, AttachAsked(self._mount(volume)))
            case "detach":
                return partial(fleet.change_volumes, name, DetachAsked(self._mounted(daemon, name) or volume))
            case "policy":
                return partial(fleet.update, name, {"restart_policy": self._rng.choice(POLICIES)})
            case "schedule":
                return partial(self._schedule, name)
            case "unschedule":
                return partial(self._unschedule, name)
            case "turn":
                return partial(self._turn, self._rng.choice((0.3, 1.1, 1.1, 5.0)) * HOUR_S)
        return None

    def _mount(self, volume: VolumeId) -> VolumeMount:
        return VolumeMount(volume, "/data", is_read_only=self._rng.random() < 0.5)

    def _mounted(self, daemon: Daemon, name: str) -> VolumeId | None:
        mounts = daemon.fleet.get(name).record.spec.volumes
        return mounts[0].volume if mounts else None

    async def _schedule(self, name: str) -> None:
        self._keeper.put(name, SnapshotSchedule(HOUR_S, Retention(max_count=KEPT_COUNT)))

    async def _unschedule(self, name: str) -> None:
        self._keeper.delete(name)

    async def _turn(self, by_s: float) -> None:
        self._ahead_s += by_s
        self._write()
        self._keeper._due._is_sooner.set()  # The clock is looked at each minute, or now.

    @property
    def _keeper(self) -> ScheduleKeeper:
        assert self._schedules is not None, "begin() comes first"
        return self._schedules

    def _write(self) -> None:
        self._notes.write_text(json.dumps({"ahead_s": self._ahead_s, "runs": self._runs}))

    # What must hold

    def _look_at(self, daemon: Daemon, record: InstanceRecord) -> None:
        """Look at a record that was just written."""
        former = self._former.get(record.id)
        self._former[record.id] = record
        attempts = record.restarts.attempts
        if attempts > ATTEMPTS_MAX:
            self.wrong.append(f"started again too often: {record}")
        is_attempt = record.restarts.last_at is not None
        if former is not None and is_attempt and record.restarts.last_at != former.restarts.last_at:
            if attempts != former.restarts.attempts + 1:
                self.wrong.append(f"a start was not counted once: {former} | {record}")
            if former.restarts.end is RunEnd.REQUEST:
                self.wrong.append(f"started again though somebody had stopped it: {former} | {record}")
        records = {view.record.id: view.record for view in daemon.fleet.list()} | {record.id: record}
        shared = shared_volumes(records)
        if shared:
            self.wrong.append(f"one writes to what another has: {shared} | {record}")

    async def check(self, daemon: Daemon) -> None:
        """Look at all of it in a quiet moment."""
        demand(not self.wrong, "what was written down is wrong", *self.wrong)
        records = {view.record.id: view.record for view in daemon.fleet.list()}
        for record in records.values():
            demand(not is_about_to_restart(record), "it is not started again", record)
        self._check_volumes(daemon, records)
        self._check_schedules(daemon, records)
        self._write()

    def _check_volumes(self, daemon: Daemon, records: Mapping[InstanceId, InstanceRecord]) -> None:
        catalog, ledger = daemon.site.volumes, daemon.site.admission.ledger
        there = {volume.id for volume in catalog.list()}
        mounts: dict[str, tuple[VolumeMount, ...]] = {key: one.spec.volumes for key, one in records.items()}
        for snapshot in daemon.snapshots.list():
            if snapshot.point.capture is not None:
                mounts[f"snapshot {snapshot.id}"] = snapshot.spec.volumes
        mounts = {key: found for key, found in mounts.items() if found}
        demand(catalog.attachments._mounts == mounts, "volumes are held for nobody, or by nobody", mounts)
        needed = {mount.volume for found in mounts.values() for mount in found}
        demand(needed <= there, "somebody has a volume that is gone", needed - there)
        demand(not shared_volumes(records), "one writes to what another has", records.values())
        on_host = self._world.volumes_in_use()
        written = Counter(path for uses in on_host.values() for path, reads in uses if not reads)
        used = Counter(path for uses in on_host.values() for path, _ in uses)
        demand(all(used[path] == 1 for path in written), "two VMMs have what one writes to", on_host)
        folders = {path.name for path in daemon.site.folder.volumes.iterdir()}
        demand(folders == there | catalog._left, "volumes and their files differ", folders, there)
        counted = {owner.partition(" ")[2] for owner in ledger._held if owner.startswith("volume ")}
        # What a start could not remove it knows not the size of.
        demand(there <= counted <= folders, "volumes are counted wrongly", counted, there, folders)

    def _check_schedules(self, daemon: Daemon, records: Mapping[InstanceId, InstanceRecord]) -> None:
        schedules = self._keeper._records
        on_disk = {one.instance: one for one in ScheduleStore(daemon.site.folder.schedules).load()[0]}
        behind = [one for one in schedules.values() if on_disk.get(one.instance) != one]
        demand(not behind, "a schedule on disk is behind", behind, on_disk)
        demand(schedules.keys() <= records.keys(), "schedules of nobody", schedules.keys() - records.keys())
        own: dict[str, list[int]] = {}
        for snapshot in daemon.snapshots.list():
            if snapshot.run is not None:
                own.setdefault(snapshot.run.schedule, []).append(snapshot.run.number)
        for record in schedules.values():
            self._check_runs(record, own.get(record.id, []))
        self._runs = {record.id: (record.next_run, record.next_run_at) for record in schedules.values()}

    def _check_runs(self, record: ScheduleRecord, runs: Sequence[int]) -> None:
        now = self.now()
        demand(len(set(runs)) == len(runs), "a run was done twice", record, runs)
        demand(max(runs, default=0) < record.next_run, "a run was done and not noted", record, runs)
        demand(record.next_run_at > now, "a run was not done", record, now)
        demand(record.next_run_at <= now + REACH_S, "a run was put off", record, now)
        passed = (now - record.created_at) / HOUR_S
        demand(record.next_run - 1 <= passed, "there were more runs than hours", record, passed)
        demand(len(runs) <= KEPT_COUNT, "more snapshots are kept than should be", record, runs)
        number, at = self._runs.get(record.id, (1, record.next_run_at))
        demand(record.next_run >= number, "a run is to be done again", record, number)
        is_later = record.next_run_at > at
        demand(record.next_run > number or not is_later, "a run was left out", record, number, at)

    async def delete_all(self, daemon: Daemon) -> None:
        """Remove the volumes, which nobody has any more; and look whether anything is left of schedules."""
        for volume in daemon.volumes.list():
            await daemon.volumes.delete(volume.id)
        left = [path.name for path in daemon.site.folder.schedules.iterdir()]
        demand(not left, "schedules stay after all is deleted", left)


def shared_volumes(records: Mapping[InstanceId, InstanceRecord]) -> list[VolumeId]:
    """Return the volumes to which one writes that another has, too."""
    uses: dict[VolumeId, list[bool]] = {}
    for record in records.values():
        for mount in record.spec.volumes:
            uses.setdefault(mount.volume, []).append(mount.is_read_only)
    return [volume for volume, reads in uses.items() if len(reads) > 1 and not all(reads)]


async def for_client(act: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
    """Do something as a request is done: when whoever asked goes away, a scope around it is cancelled."""
    errors: list[RametError] = []

    async def try_it() -> None:
        try:
            await act(*arguments)
        except RametError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(try_it)
    if errors:
        raise errors[0]


async def keep(kept: Kept | None, daemon: Daemon, live: Callable[[], Awaitable[None]]) -> None:
    """Live with a daemon that keeps to its rules, if it has any."""
    async with anyio.create_task_group() as group:
        if kept is not None:
            kept.begin(daemon, group)
        await live()
        group.cancel_scope.cancel()
