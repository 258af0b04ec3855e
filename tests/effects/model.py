"""Random operations with random failures, on one host under one daemon after another.

    python -m tests.effects.model --seed 7 --steps 500 [--keep] [--mutate NAME]

Each daemon is a process of its own, forked warm, and ends in good order or by SIGKILL in the middle of any
call. What is done follows from the seed alone; only the order of what happens at the same time does not.
Exit code 1, with the trace of the last daemon: something did not hold.
"""

import argparse
import asyncio
import faulthandler
import gc
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog

from examples.make_image import make_oci_layout
from ramet.core.errors import RametError
from ramet.core.ids import CaptureId, InstanceId
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.spec import InstanceRecord, State
from ramet.effects import captures, fork_pools, hold, thaw
from ramet.effects.performer import SitePerformer
from ramet.images import Catalog, ImageLimits
from ramet.instance import actor
from ramet.snapshots import store
from ramet.vmm.fake.driver import MARK
from ramet.vmm.fake.nursery import Nursery
from tests.effects import model_oracle
from tests.effects.model_chaos import Chaos, die, draw
from tests.effects.model_kept import Kept, keep
from tests.effects.model_mutations import KEPT_MUTATIONS, MUTATIONS
from tests.effects.model_oracle import Violation, check_until_well, demand, stored_records
from tests.effects.world import Daemon, World, new_folder
from tests.net.namespaces import own_namespace

TARGETS = (State.RUNNING, State.STANDBY, State.STOPPED)
SNAPSHOT_COUNT_HIGH = 4
NAMES = tuple(f"n{index}" for index in range(10))
IN_FLIGHT_MAX = 4
LIFE_TIMEOUT_S = 150
RETURN_TIMEOUT_S = 60.0
LIVES_PER_WORLD = 5
RETRY_S = 0.3
"""How soon a daemon here tries again what failed: long enough to die meanwhile, short enough to wait for."""
MUTANT_SETTLE_TIMEOUT_S = 2.0
MUTANT_RETURN_TIMEOUT_S = 10.0
"""What stays wrong need not be waited for."""

RETRIES = (
    (actor, "SAVE_RETRY_S"),
    (captures, "END_RETRY_S"),
    (fork_pools, "RETRY_S"),
    (hold, "REACH_INTERVAL_S"),
    (store, "DELETE_RETRY_S"),
    (thaw, "RETRY_S"),
)

Act = Callable[[], Awaitable[Any]]


class Life:
    """One daemon and what is done to it."""

    def __init__(
        self, world: World, rng: random.Random, steps: int, trace: Any, kept: Kept | None = None
    ) -> None:
        self.world, self.rng, self.steps_left, self._trace = world, rng, steps, trace
        self._kept = kept
        self.chaos = Chaos(world.folder)
        self._unrecorded = world.folder / "unrecorded"
        """Names the instances whose deletion some daemon could not write down, and began nevertheless."""
        self._unrecorded.touch()
        self._flying: dict[asyncio.Task[None], str] = {}
        self._raised: list[str] = []
        self.return_timeout_s = RETURN_TIMEOUT_S

    def say(self, text: str) -> None:
        self._trace.write(text + "\n")

    async def run(self, *, last: bool) -> None:
        """Start a daemon and live with it; `last`: nothing goes wrong, and all is deleted."""
        whole = [
            record
            for record in stored_records(self.world).values()
            if not record.is_deleting and record.becoming is None
        ]
        before = {
            record.id: record.runtime.pid
            for record in whole
            if record.state is State.RUNNING and record.runtime is not None
        }
        asleep = {record.id: record.capture for record in whole if record.state is State.STANDBY}
        alive = self.world.processes()
        before = {instance: pid for instance, pid in before.items() if alive.get(pid) == instance}
        self.chaos.install()
        self._note_unrecorded()
        if not last and self.rng.random() < 0.4:
            self._arm(("fail", "fail late", "die"), 40)
        is_up = False
        asyncio.get_running_loop().call_later(LIFE_TIMEOUT_S * 0.9, self._show_tasks)
        try:
            async with self.world.daemon(self.chaos.faults) as daemon:
                is_up = True
                await keep(self._kept, daemon, lambda: self._be(daemon, before, asleep, last=last))
        except Exception as error:
            if is_up or not self.chaos.struck:
                raise
            self.say(f"did not start: {type(error).__name__}: {error}")

    async def _be(
        self,
        daemon: Daemon,
        before: dict[InstanceId, int],
        asleep: dict[InstanceId, CaptureId | None],
        *,
        last: bool,
    ) -> None:
        await self._settle(daemon)
        if not self.chaos.struck:
            for instance, pid in before.items():
                record = daemon.fleet.get(instance).record
                same = record.runtime is not None and record.runtime.pid == pid
                demand(same and record.state is State.RUNNING, "a restart lost a guest", record, pid)
            for instance, capture in asleep.items():
                record = daemon.fleet.get(instance).record
                same = record.state is State.STANDBY and record.capture == capture
                # Of a deletion that had begun the disk may have refused the record.
                is_unrecorded = instance in self._unrecorded.read_text().split()
                same = same or (record.state is State.UNKNOWN and is_unrecorded)
                demand(same, "a restart lost the memory of a sleeper", record, capture)
        if last:
            await self._delete_all(daemon)
        else:
            await self._live(daemon)

    def _note_unrecorded(self) -> None:
        save = SitePerformer.save

        def save_or_note(performer: SitePerformer, record: InstanceRecord) -> None:
            try:
                save(performer, record)
            except RametError:
                if record.is_deleting:
                    with self._unrecorded.open("a") as file:
                        file.write(f"{record.id}\n")
                raise

        setattr(SitePerformer, "save", save_or_note)  # noqa: B010

    async def _live(self, daemon: Daemon) -> None:
        ends_by_crash = self.rng.random() < 0.6
        while self.steps_left > 0:
            self.steps_left -= 1
            if self.rng.random() < 0.4:
                self._arm(None, 25)
            self._begin(daemon)
            for _ in range(self.rng.randrange(20)):
                await anyio.lowlevel.checkpoint()
            if len(self._flying) >= IN_FLIGHT_MAX or self.rng.random() < 0.1:
                await self._wait_for_one()
            if self.rng.random() < 0.1:
                await self._settle(daemon)
        if ends_by_crash:
            self._arm(("die",), 40)
            for _ in range(8):
                self._begin(daemon)
                await self._wait_for_one()
            self.say("killed")
            die()
        elif self.rng.random() < 0.5:
            await self._settle(daemon)
        self.say("leaves")
        self.chaos.go_on()  # Nobody would be left to do it.
        for task in self._flying:
            task.cancel()

    async def _wait_for_one(self) -> None:
        if self._flying:
            await asyncio.wait(self._flying, return_when=asyncio.FIRST_COMPLETED, timeout=0.3)

    def _arm(self, kinds: tuple[Any, ...] | None, within: int) -> None:
        kind = draw(self.rng) if kinds is None else self.rng.choice(kinds)
        after = self.rng.randrange(within)
        self.say(f"armed {kind} after {after}")
        self.chaos.arm(kind, after=after)

    async def _settle(self, daemon: Daemon) -> None:
        """Let all come to rest, and look whether it is as it must be; if not, this process ends here."""
        self.chaos.calm()
        try:
            if self._flying:
                _, pending = await asyncio.wait(self._flying, timeout=self.return_timeout_s)
                unreturned = [self._flying[task] for task in pending]
                demand(not pending, "an operation does not return", unreturned)
            demand(not self._raised, "an error without a type", *self._raised)
            await check_until_well(self.world, daemon, None if self._kept is None else self._kept.check)
        except Violation:
            self.say(f"struck before: {dict(self.chaos.struck)}")
            for view in daemon.fleet.list():
                self.say(f"record {view.record}")
            self._show_tasks()
            traceback.print_exc()
            os._exit(1)  # What stands still might keep a daemon from leaving for long.
        self.say("well")

    def _show_tasks(self) -> None:
        for task in asyncio.all_tasks():
            self.say(f"task {task.get_name()}")
            awaited: Any = task.get_coro()
            while hasattr(awaited, "cr_await"):  # The task itself knows its outermost frame only.
                code = awaited.cr_code
                line = awaited.cr_frame.f_lineno if awaited.cr_frame else "over"
                self.say(f"  {code.co_filename}:{line} {code.co_qualname}")
                awaited = awaited.cr_await

    async def _delete_all(self, daemon: Daemon) -> None:
        for view in daemon.fleet.list():
            try:
                await daemon.fleet.delete(view.record.id)
            except RametError as error:
                raise Violation(
                    f"nothing fails, but {view.record.name} cannot be deleted: {error}"
                ) from error
        for snapshot in daemon.snapshots.list():
            await daemon.snapshots.delete(snapshot.id)
        if self._kept is not None:
            await self._kept.delete_all(daemon)
        await self._settle(daemon)
        for kind, left in self.world.leftovers().items():
            demand(not left, "something stays after all is deleted", kind, left)
        demand(daemon.site.network.statistics().held_count == 0, "slots stay held")
        layers = daemon.site.layers.statistics()
        demand(not any(layers.values()), "layers stay held", layers)

    # Operations

    def _begin(self, daemon: Daemon) -> None:
        views = {view.record.name: view.record for view in daemon.fleet.list()}
        names = sorted(views)
        free = [name for name in NAMES if name not in views]
        weights = self._weigh(names, free, daemon.snapshots.list())
        if self._kept is not None:
            weights |= self._kept.weights(daemon, names)
        (what,) = self.rng.choices(list(weights), list(weights.values()))
        name = self.rng.choice(names) if names else self.rng.choice(NAMES)
        fresh = self.rng.sample(free, min(len(free), self.rng.choice((1, 1, 2, 3))))
        match what:
            case "kill":
                pids = sorted(pid for pid, i in self.world.processes().items() if i == views[name].id)
                self.say(f"step kill {name} {pids}")
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                return
            case "cancel":
                task = self.rng.choice(sorted(self._flying, key=lambda task: self._flying[task]))
                self.say(f"step cancel {self._flying[task]}")
                task.cancel()
                return
            case "snapshot fork" | "snapshot restore" | "snapshot delete" | "snapshot pool":
                act = self._act_on_snapshot(daemon, what, fresh)
            case "exec" | "write" | "end" | "arm":
                act = self._act_inside(daemon, what, name)
            case _:
                kept = None if self._kept is None else self._kept.act(daemon, what, name)
                act = kept or self._act(daemon, what, name, fresh)
        text = f"{what} {fresh[0] if what == 'create' else name} {fresh if 'fork' in what else ''}"
        self.say(f"step {text}")
        task = asyncio.get_running_loop().create_task(self._do(text, act))
        self._flying[task] = text
        task.add_done_callback(self._flying.pop)

    def _weigh(
        self, names: Sequence[str], free: Sequence[str], snapshots: Sequence[SnapshotRecord]
    ) -> dict[str, int]:
        """Return the operations that there are, each with how often it is to be drawn."""
        weights = {
            "create": 5 if free else 0,
            "clash": 1,
            "cancel": 3 if self._flying else 0,
        }
        if names:
            weights |= {
                "fork": 8 if free else 0,
                "fork to": 5 if free else 0,
                "stop": 3,
                "start": 3,
                "standby": 4,
                "restore": 4,
                "snapshot": 2,
                "delete": 4,
                "exec": 3,
                "write": 3,
                "end": 2,
                "kill": 2,
                "arm": 2,
                "look": 1,
                "pool": 3,
            }
        if snapshots:
            weights |= {
                "snapshot fork": 3 if free else 0,
                "snapshot restore": 2,
                "snapshot pool": 2,
                "snapshot delete": 2 if len(snapshots) <= SNAPSHOT_COUNT_HIGH else 8,
            }
        return weights

    def _act(self, daemon: Daemon, what: str, name: str, fresh: Sequence[str]) -> Act:
        fleet = daemon.fleet
        match what:
            case "create":
                spec = daemon.spec if self._kept is None else self._kept.spec(daemon)
                return partial(fleet.create, fresh[0], spec)
            case "clash":
                return partial(fleet.create, name, daemon.spec)
            case "fork":
                return partial(fleet.fork, name, fresh)
            case "fork to":
                return partial(fleet.fork, name, fresh, target=self.rng.choice(TARGETS))
            case "snapshot":
                kind = self.rng.choice(tuple(SnapshotKind))
                return partial(daemon.snapshots.create, name, kind, self.rng.choice((None, "one", "two")), {})
            case "pool":
                return partial(fleet.set_fork_pool, name, self.rng.choice((0, 0, 1, 2)))
            case "look":
                return partial(fleet.wait, name, State.STOPPED, 0.01)
            case _:
                act: Act = partial(getattr(fleet, what), name)
                return act

    def _act_inside(self, daemon: Daemon, what: str, name: str) -> Act:
        match what:
            case "exec":
                argv: tuple[str, ...] = ("echo", "hello")
            case "write":
                argv = ("write", "file", str(self.steps_left))
            case "end":
                argv = (self.rng.choice(("poweroff", "reset", "crash")),)
            case _:
                fault = self.rng.choice(("refuse", "hangup"))
                operation = self.rng.choice(("sync", "freeze", "thaw", "identify", "health", "shutdown"))
                argv = ("fault", operation, fault)
        return partial(daemon.run, name, *argv)

    def _act_on_snapshot(self, daemon: Daemon, what: str, fresh: Sequence[str]) -> Act:
        snapshots = daemon.snapshots
        snapshot, target = self.rng.choice(snapshots.list()), self.rng.choice(TARGETS)
        match what:
            case "snapshot fork":
                return partial(snapshots.fork, snapshot.id, fresh, target=target)
            case "snapshot restore":
                return partial(snapshots.restore, snapshot.source, snapshot.id, target=target)
            case "snapshot pool":
                return partial(_set_pool, daemon, snapshot, self.rng.choice((0, 1, 2)))
            case _:
                return partial(snapshots.delete, snapshot.id)

    async def _do(self, text: str, act: Act) -> None:
        try:
            result = await act()
            self.say(f"  {text}: {getattr(result, 'record', None) and result.record.state!s}")
        except asyncio.CancelledError:
            self.say(f"  {text}: cancelled")
        except (RametError, AssertionError) as error:
            self.say(f"  {text}: {type(error).__name__}: {error}")
        except Exception:
            self._raised.append(f"{text}: {traceback.format_exc()}")


async def _set_pool(daemon: Daemon, snapshot: SnapshotRecord, size: int) -> None:
    daemon.snapshots.set_fork_pool(snapshot.id, size)


def live_in_child(
    folder: Path,
    images: Path,
    nursery: Nursery,
    key: str,
    steps: int,
    last: bool,
    mutation: str | None,
    *,
    keeps: bool = False,
) -> int:
    """Fork a daemon, have it live, and return its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = 1
    try:
        trace = (folder / "trace").open("a", buffering=1)
        sys.stdout.flush()
        os.dup2(trace.fileno(), 2)
        sys.stderr = trace
        faulthandler.dump_traceback_later(LIFE_TIMEOUT_S, exit=True)
        world = World(folder, images)
        world.nursery = nursery
        for module, name in RETRIES:
            setattr(module, name, RETRY_S)
        rng = random.Random(key)
        life = Life(world, rng, steps, trace, Kept(world, rng) if keeps else None)
        if mutation is not None:
            (MUTATIONS | KEPT_MUTATIONS)[mutation]()
            model_oracle.SETTLE_TIMEOUT_S = MUTANT_SETTLE_TIMEOUT_S
            model_oracle.ANSWER_TIMEOUT_S = MUTANT_SETTLE_TIMEOUT_S
            life.return_timeout_s = MUTANT_RETURN_TIMEOUT_S
        anyio.run(lambda: life.run(last=last))
        with (folder / "coverage").open("a") as file:
            for point in life.chaos.points:
                file.write(f"{point} {life.chaos.called[point]} {life.chaos.struck[point]}\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_model(
    seed: int, steps: int, images: Path, mutation: str | None = None, *, keeps: bool = False
) -> int:
    """Live until `steps` are done; returns the exit code. In a network namespace of the caller's.

    With `keeps`, instances have volumes, restart policies and schedules (`model_kept`).
    """
    rng = random.Random(seed)
    done, lives, crashes, called, struck = 0, 0, 0, Counter[str](), Counter[str]()
    gc.collect()
    gc.freeze()  # What is shared with the daemons need not be looked through by each.
    while done < steps:
        folder = new_folder()
        nursery = Nursery(MARK)
        try:
            for life in range(LIVES_PER_WORLD + 1):
                last = life == LIVES_PER_WORLD
                key = f"{seed}/{lives}"
                before = (folder / "trace").read_text() if life else ""
                (folder / "trace").write_text(f"---- life {key}\n")
                status = live_in_child(
                    folder, images, nursery, key, rng.randrange(5, 80), last, mutation, keeps=keeps
                )
                nursery.settle()
                lives += 1
                trace = (folder / "trace").read_text()
                done += sum(line.startswith("step ") for line in trace.splitlines())
                crashes += os.WIFSIGNALED(status)
                if status not in (0, signal.SIGKILL):
                    print(before, trace)
                    print(f"seed {seed}, life {key}, step {done}: exit status {status:#x}")
                    return 1
            for line in (folder / "coverage").read_text().splitlines():
                point, calls, strikes = line.split()
                called[point] += int(calls)
                struck[point] += int(strikes)
        finally:
            anyio.run(World(folder, images).aclose)
            nursery.close()
    missed = sorted(point for point in called if not struck[point])
    print(
        f"seed {seed}: {done} steps, {lives} daemons, {crashes} killed, {struck.total()} faults in "
        f"{len(called) - len(missed)} of {len(called)} calls; never failed: {' '.join(missed)}"
    )
    return 0


def make_images(folder: Path) -> Path:
    """Make a catalog with the one image there is."""
    make_oci_layout(folder / "oci", "demo:1", {"etc/name": (0o644, b"demo")}, {}, {"Cmd": ["sleep"]})

    async def load() -> None:
        catalog = Catalog(folder / "images", ImageLimits())
        await catalog.open()
        await catalog.import_path(folder / "oci", name="demo:1")

    asyncio.run(load())
    return folder / "images"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--mutate", choices=MUTATIONS | KEPT_MUTATIONS)
    parser.add_argument("--keep", action="store_true", help="with volumes, restart policies and schedules")
    arguments = parser.parse_args()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    folder = new_folder()
    try:
        # In a process of its own: what forks daemons has no threads.
        pid = os.fork()
        if not pid:
            make_images(folder)
            os._exit(0)
        os.waitpid(pid, 0)
        with own_namespace():
            return run_model(
                arguments.seed, arguments.steps, folder / "images", arguments.mutate, keeps=arguments.keep
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
