"""All instances of this daemon, by id and by name.

The fleet is the one place that knows which names are taken: a name is held from the moment an instance is
minted, before anything of it exists, until all of it is gone. It holds no feature: what has to be done goes
through the actors to the performer.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from ramet.core.compression import NOT_SAID, CompressionAsk
from ramet.core.errors import Invalid, RametError
from ramet.core.ids import CaptureId, InstanceId, LayerId, is_name, mint_id
from ramet.core.phases import Phases
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, RestorePoint, SpecChanges, State
from ramet.core.volumes import demand_copyable
from ramet.instance.actor import Actor
from ramet.instance.events import (
    AttachAsked,
    Begin,
    BeginCopy,
    BeginFork,
    Completed,
    DeleteAsked,
    DetachAsked,
    Event,
    PoolAsked,
    RestartDue,
    RestoreAsked,
    Rewound,
    StandbyAsked,
    StartAsked,
    StopAsked,
    UpdateAsked,
)
from ramet.instance.fleet_types import (
    DeleteIncomplete,
    ExecCommand,
    ExecSession,
    InstanceAmbiguous,
    InstanceNotFound,
    InstanceView,
    NameTaken,
    PathStat,
    WaitOutcome,
    WrongState,
    demand_agent,
)
from ramet.instance.host import Host, LogSource
from ramet.instance.outcomes import Forked, Outcomes, outcomes_of
from ramet.instance.register import Register
from ramet.instance.transitions import is_about_to_restart, is_starting

READY_TIMEOUT_S: Final = 120.0
"""How long `create` waits for the guest before it answers with an instance that is still Initializing."""

_SETTLED: Final = frozenset({State.RUNNING, State.STOPPED, State.STANDBY, State.UNKNOWN})
_STOPPABLE: Final = frozenset({State.INITIALIZING, State.RUNNING})
_ENDED: Final = frozenset({State.STOPPED, State.STANDBY, State.UNKNOWN})
_TARGETS: Final = frozenset({State.RUNNING, State.STANDBY, State.STOPPED})
"""What a fork can be made to be, and what can be forked."""

log = structlog.get_logger(__name__)

Done = TypeVar("Done")
Found = Iterable[tuple[InstanceRecord, Event | None]]


class Fleet:
    """The instances, and a `register` of them. Run it to run their actors; when it ends, guests go on."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._actors: dict[InstanceId, Actor] = {}
        self._names: dict[str, InstanceId] = {}
        self.register = Register()
        self._group: TaskGroup | None = None

    async def run(self, found: Found, *, task_status: TaskStatus[None]) -> None:
        """Own the actors until cancelled. `found`: the stored records, each with what the host shows."""
        async with anyio.create_task_group() as group:
            self._group = group
            for record, event in found:
                actor = self._add(record)
                if event is not None:
                    actor.tell(event)
            task_status.started()
            await anyio.sleep_forever()

    # Reading

    def get(self, ref: str) -> InstanceView:
        """Return the instance with this id, name or unique beginning of an id.

        Raises:
            InstanceNotFound, InstanceAmbiguous
        """
        return self._view(self._actor(ref).record)

    def list(self) -> list[InstanceView]:
        """Return all instances, oldest first."""
        return [self._view(actor.record) for actor in self._actors.values()]

    def find(
        self,
        *,
        state: State | None = None,
        tags: Mapping[str, str] | None = None,
        after: tuple[float, str] | None = None,
    ) -> Iterator[InstanceView]:
        """Yield those in `state` and with all of `tags`, where they are given; oldest first, behind `after`.

        Who that is, is settled at once; each is told as it is when its turn comes, if it is not gone by then.
        """
        found = self.register.find(state=state, tags=tags, after=after)
        return (self._view(self._actors[one].record) for _, one in found if one in self._actors)

    async def wait(self, ref: str, state: State, timeout_s: float) -> WaitOutcome:
        """Wait until the instance is in `state`, cannot come to it any more, or time is up.

        Raises:
            InstanceNotFound, InstanceAmbiguous; the first also if it is deleted meanwhile.
        """
        actor = self._actor(ref)

        def is_decided(record: InstanceRecord) -> bool:
            ended = record.state in (State.STOPPED, State.UNKNOWN) and not is_about_to_restart(record)
            return record.state is state or ended

        with anyio.move_on_after(timeout_s):
            await actor.wait_until(is_decided)
        if actor.is_gone and not is_decided(actor.record):
            raise actor.gone()
        record = actor.record
        return WaitOutcome(record.state, record.state_error, timed_out=not is_decided(record))

    def logs(self, ref: str, *, source: LogSource, tail: int, follow: bool) -> AsyncIterator[str]:
        """Yield the last `tail` lines of a log and, with `follow`, those to come until the instance stops.

        Raises:
            InstanceNotFound, InstanceAmbiguous
        """
        actor = self._actor(ref)

        def is_alive() -> bool:
            return not actor.is_gone and actor.record.runtime is not None

        return self._host.logs(actor.record, source, tail, follow=follow, is_alive=is_alive)

    async def open_exec(self, ref: str, command: ExecCommand) -> ExecSession:
        """Run a command in a guest.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            GuestAgentSkipped, WrongState: nobody may enter it; it does not run.
            Invalid: the command cannot be run like that.
            Broken: the guest does not answer.
        """
        return await self._host.open_exec(self._running(ref), command)

    async def stat_path(self, ref: str, path: str, *, follow_links: bool) -> PathStat:
        """Tell what is at `path` of a guest; of a symbolic link itself, or of what it leads to.

        Raises:
            InstanceNotFound, InstanceAmbiguous, GuestAgentSkipped, WrongState: as `open_exec`.
            Broken: the guest does not answer.
        """
        return await self._host.stat_path(self._running(ref), path, follow_links=follow_links)

    def open_archive(
        self, ref: str, path: str, *, follow_links: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read `path` of a guest, with all below it, as a POSIX pax tar stream in chunks.

        Names in it are relative; the first is the last part of `path`, "." where that is none ("/", "a/.").
        `follow_links`: if `path` itself is a symbolic link, what it leads to; links below it stay links.
        Entering fails if there is nothing to read; leaving early ends the copy in the guest.

        Raises:
            InstanceNotFound, InstanceAmbiguous, GuestAgentSkipped, WrongState: as `open_exec`, at once.
            NotFound: there is no such path (`path_not_found`).
            Broken: the guest does not answer, or could not read on.
        """
        return self._host.open_archive(self._running(ref), path, follow_links=follow_links)

    async def put_archive(
        self, ref: str, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool
    ) -> None:
        """Unpack a tar stream into the directory `path` of a guest, which exists.

        Each file appears whole or not at all; what was unpacked before a failure stays. `keep_owner`: owners
        as in the archive, otherwise all is the workload's user's.

        Raises:
            InstanceNotFound, InstanceAmbiguous, GuestAgentSkipped, WrongState: as `open_exec`.
            NotFound: there is no such path (`path_not_found`).
            Invalid: it is not a directory, or the stream is not an archive that may be unpacked there.
            Exhausted: the guest's disk is full (`guest_disk_full`).
            Broken: the guest does not answer, or could not write on.
        """
        await self._host.put_archive(self._running(ref), path, chunks, keep_owner=keep_owner)

    # Changing

    async def create(self, name: str, spec: InstanceSpec) -> InstanceView:
        """Mint an instance and boot it; returns when its guest answers, or has ended already.

        Raises:
            Invalid: not a name.
            NameTaken, Exhausted: nothing was made.
            Broken: it could not be made; nothing of it is left.
        """
        actor = self._mint(name, spec, parent=None)
        actor.tell(Begin())
        with anyio.move_on_after(READY_TIMEOUT_S):
            await actor.wait_until(lambda record: record.state in _SETTLED)
        await self._raise_failure(actor)
        return self._view(actor.record)

    async def start(
        self, ref: str, *, entrypoint: tuple[str, ...] | None = None, cmd: tuple[str, ...] | None = None
    ) -> InstanceView:
        """Boot a stopped instance from its disk; returns when its guest answers, or has ended already.

        What is not None replaces that part of its spec, for this start and those to come.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: it is not Stopped.
            RametError: it could not be started; it is Stopped, as before, and says why.
        """
        actor = self._actor(ref)
        await self._start(actor, StartAsked(entrypoint, cmd))
        return self._view(actor.record)

    async def restart(self, ref: str) -> InstanceView:
        """Boot an instance whose policy has it boot now. Errors as of `start`; WrongState: not yet."""
        actor = self._actor(ref)
        await self._start(actor, RestartDue(time.time()))
        return self._view(actor.record)

    async def standby(self, ref: str, compression: CompressionAsk = NOT_SAID) -> InstanceView:
        """Store the memory of a running instance and end its VMM; returns when it sleeps.

        Its memory is compressed afterwards, in the background, if `compression` says so.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: it does not run.
            StandbyInterrupted: somebody woke it meanwhile.
            RametError: its memory could not be stored; it runs on.
        """
        actor = self._actor(ref)
        await self._put_to_sleep(actor, compression)
        return self._view(actor.record)

    async def restore(self, ref: str) -> InstanceView:
        """Wake a sleeping instance, or have one go on that is just being put to sleep; returns when it runs.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: it does not sleep.
            RametError: it could not be woken; it sleeps, as before, and says why.
        """
        actor = self._actor(ref)
        await self._wake(actor)
        return self._view(actor.record)

    async def set_fork_pool(self, ref: str, size: int) -> InstanceView:
        """Have `size` children of an instance made ahead whenever it runs; returns at once.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: it is being made or deleted, or nobody knows what it is.
            Broken: that cannot be written down; nothing was changed.
        """
        actor = self._actor(ref)
        return self._view(await actor.ask(PoolAsked(size)))

    async def update(self, ref: str, changes: SpecChanges) -> InstanceView:
        """Have parts of an instance's spec be others from now on; returns at once. Errors as of a pool."""
        return self._view(await self._actor(ref).ask(UpdateAsked(changes)))

    async def change_volumes(self, ref: str, asked: AttachAsked | DetachAsked) -> InstanceView:
        """Have a stopped instance mount a volume more, or less, from its next boot on; returns at once."""
        return self._view(await self._actor(ref).ask(asked))

    async def rewind(
        self, ref: str, spec: InstanceSpec, layer: LayerId, capture: CaptureId | None
    ) -> InstanceView:
        """Have an instance that does not run stand on `layer`, and sleep in `capture`, from now on.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: it runs; nothing was changed.
        """
        actor = self._actor(ref)
        return self._view(await actor.ask(Rewound(spec, layer, capture)))

    async def bring_to(self, ref: str, target: State) -> InstanceView:
        """Have an instance that sleeps or is stopped be what it is to be.

        Raises:
            InstanceNotFound, InstanceAmbiguous, RametError: see `start`, `standby` and `restore`.
        """
        actor = self._actor(ref)
        await self._bring_to(actor, target)
        return self._view(actor.record)

    def restore_point(self, ref: str, *, with_memory: bool) -> AbstractAsyncContextManager[RestorePoint]:
        """Have an instance as it is now stand still, inside, to be copied or kept; it goes on meanwhile.

        With memory it must run or sleep. Without, a running one is as after a power cut.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: on entering: its state does not allow that.
            RametError: on entering: it cannot be captured.
        """
        return self._host.restore_point(self._actor(ref).record, with_memory=with_memory)

    async def stop_all(self) -> None:
        """Stop whatever runs, all at once; returns when all have ended, or cannot be asked to."""
        async with anyio.create_task_group() as group:
            for actor in list(self._actors.values()):
                group.start_soon(self._stop_at_last, actor)

    async def stop(self, ref: str) -> InstanceView:
        """Stop an instance and return when its VMM is gone; its disk stays.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: it does not run.
        """
        actor = self._actor(ref)
        await actor.ask(StopAsked())
        return self._view(await actor.wait_until(lambda record: record.state in _SETTLED))

    async def delete(self, ref: str) -> None:
        """Remove an instance with all of its data; returns when it is gone.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: it is just being made.
            Broken: part of it could not be removed; it is Unknown then and can be deleted again.
        """
        await self._delete(self._actor(ref))

    async def fork(self, ref: str, names: Sequence[str], *, target: State | None = None) -> Outcomes:
        """Make one child of an instance for each of `names`; outcomes in their order.

        Args:
            target: what they are to be: Running, Standby or Stopped; None: what the source is.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            WrongState: the source is on its way from one state to another. Whatever befalls one child is its
                own outcome.
            RametError: the source cannot be captured.
        """
        source = self._actor(ref)
        record, state = source.record, source.record.state
        target = target or state
        demand_copyable(record.spec.volumes)
        if state not in _TARGETS or target not in _TARGETS:
            raise WrongState(
                f"instance {record.name} is {state}: only one that runs, sleeps or is stopped can be forked",
                state=state,
            )
        if state is target is State.RUNNING:
            return await outcomes_of(names, lambda name: self._fork_one(source, name))
        with_memory = State.STOPPED not in (state, target)
        async with self._host.restore_point(record, with_memory=with_memory) as point:
            return await self.copy(point, record.spec, record.id, names, target=target)

    async def copy(
        self,
        point: RestorePoint,
        spec: InstanceSpec,
        source: InstanceId,
        names: Sequence[str],
        *,
        target: State,
        pool: str | None = None,
    ) -> Outcomes:
        """Make one child of a restore point for each of `names`; outcomes in their order.

        `point` must stay whole until this returns; `spec` and `source` are those of whom it is a moment;
        `pool` is the id of the snapshot that it is, if some of its children may have been made ahead.
        """
        return await outcomes_of(names, lambda name: self._copy_one(point, spec, source, name, target, pool))

    async def tell(self, instance: InstanceId, event: Event) -> None:
        """Tell an instance what happened to it; returns when its record, if it needs to, says so durably.

        Harmless if the instance is gone.
        """
        if instance in self._actors:
            await self._actors[instance].inform(event)

    # Inside

    async def _stop_at_last(self, actor: Actor) -> None:
        """Stop an instance, also one that is just being made or started, or is to be started again."""
        await actor.wait_until(lambda record: record.state is not State.CREATED and not is_starting(record))
        try:
            if actor.record.state in _STOPPABLE or is_about_to_restart(actor.record):
                await actor.ask(StopAsked())
        except RametError as error:
            log.warning("instance_not_stopped", instance=actor.record.id, error=str(error))
            return
        await actor.wait_until(lambda record: record.state in _ENDED)

    async def _fork_one(self, source: Actor, name: str) -> Forked:
        actor = self._mint(
            name, source.record.spec.for_fork(), parent=source.record.id, pool=source.record.id
        )
        actor.tell(BeginFork(source.record.id))
        return await self.see_through(lambda: self._finish_child(actor, State.RUNNING))

    async def _copy_one(
        self,
        point: RestorePoint,
        spec: InstanceSpec,
        source: InstanceId,
        name: str,
        target: State,
        pool: str | None,
    ) -> Forked:
        actor = self._mint(name, spec.for_fork(), parent=source, pool=pool)
        actor.tell(BeginCopy(point, becoming=target))
        return await self.see_through(lambda: self._finish_child(actor, target))

    async def _finish_child(self, actor: Actor, target: State) -> Forked:
        await actor.wait_until(lambda record: record.state in _SETTLED)
        await self._raise_failure(actor)
        try:
            await self._bring_to(actor, target)
        except RametError as error:
            await self._remove_failed(actor, error)
            raise
        if actor.record.becoming is not None:
            await actor.inform(Completed())
        return self._view(actor.record), self._host.timings_ms(actor.record.id)

    async def see_through(self, work: Callable[[], Awaitable[Done]]) -> Done:
        """Do `work` to its end, even if whoever asked for it goes away: it is done whole, or not at all."""
        assert self._group is not None, "the fleet does not run"
        done: asyncio.Future[Done] = asyncio.get_running_loop().create_future()

        async def see_through() -> None:
            try:
                result = await work()
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
                elif not isinstance(error, RametError):
                    log.exception("work_failed_unexpectedly")
            except BaseException:  # The daemon leaves.
                done.cancel()
                raise
            else:
                if not done.done():
                    done.set_result(result)

        self._group.start_soon(see_through)
        return await done

    async def _bring_to(self, actor: Actor, target: State) -> None:
        """Have an instance that stands still be what it is to be; one that ends by itself on the way has."""
        if actor.record.state is target:
            return
        if actor.record.state is State.STANDBY:
            await self._wake(actor)
            return
        await self._start(actor, StartAsked(completes=True))
        if target is State.STANDBY:
            await self._put_to_sleep(actor)

    async def _start(self, actor: Actor, asked: StartAsked | RestartDue) -> None:
        await actor.ask(asked)
        with anyio.move_on_after(READY_TIMEOUT_S):
            await actor.wait_until(lambda record: record.state in _SETTLED)
        if actor.failure is not None:
            raise actor.failure

    async def _put_to_sleep(self, actor: Actor, compression: CompressionAsk = NOT_SAID) -> None:
        await actor.ask(StandbyAsked(compression))
        record = await actor.wait_until(lambda record: record.state is not State.PAUSED)
        if actor.failure is not None:
            raise actor.failure
        if record.state is not State.STANDBY:
            raise WrongState(f"instance {record.name} ended while it was put to sleep", state=record.state)

    async def _wake(self, actor: Actor) -> None:
        while True:
            await actor.ask(RestoreAsked())
            record = await actor.wait_until(lambda record: record.state in _SETTLED)
            if actor.failure is not None and record.state is State.STANDBY:
                raise actor.failure
            if record.state is not State.STANDBY or actor.is_gone:
                return
            # It was being put to sleep, and too far gone to go on: now it sleeps.

    def _mint(
        self, name: str, spec: InstanceSpec, parent: InstanceId | None, *, pool: str | None = None
    ) -> Actor:
        if not is_name(name):
            raise Invalid(
                f"{name!r} is not a name", remedy="use up to 63 lowercase letters, digits and dashes"
            )
        if name in self._names:
            raise NameTaken(
                f"there is an instance called {name}", remedy="choose another name or delete it", name=name
            )
        instance = InstanceId(mint_id())
        identity = InstanceIdentity(instance, name, None, secrets.token_hex(16), time.time(), parent)
        phases = Phases(State.CREATED.value, identity.created_at)
        record = self._host.mint(InstanceRecord(spec, identity, State.CREATED, phases=phases), pool)
        return self._add(record)

    def _add(self, record: InstanceRecord) -> Actor:
        assert self._group is not None, "the fleet does not run"
        actor = Actor(record, self._host, self.register.change, self._drop)
        self._actors[record.id] = actor
        self._names[record.name] = record.id
        self.register.add(record)
        self._group.start_soon(actor.run)
        return actor

    def _drop(self, instance: InstanceId) -> None:
        actor = self._actors.pop(instance)
        del self._names[actor.record.name]
        self.register.remove(actor.record)

    async def _raise_failure(self, actor: Actor) -> None:
        """If making it failed, remove what is left and raise why."""
        if actor.failure is not None:
            failure = actor.failure
            await self._remove_failed(actor, failure)
            raise failure

    async def _remove_failed(self, actor: Actor, failure: RametError) -> None:
        try:
            await self._delete(actor)
        except DeleteIncomplete as error:
            name = actor.record.name
            raise DeleteIncomplete(
                f"{failure.message}; and what is left of instance {name} could not be removed",
                remedy=f"ramet rm --force {name}",
            ) from error

    async def _delete(self, actor: Actor) -> None:
        await actor.ask(DeleteAsked())
        record = await actor.wait_until(lambda record: record.state is State.UNKNOWN)
        if not actor.is_gone:
            raise DeleteIncomplete(
                f"instance {record.name} could not be removed whole: {record.state_error}",
                remedy="delete it again",
            )

    def _actor(self, ref: str) -> Actor:
        instance = self._names.get(ref, InstanceId(ref))
        if instance in self._actors:
            return self._actors[instance]
        begins = [actor for key, actor in self._actors.items() if ref and key.startswith(ref)]
        if len(begins) > 1:
            raise InstanceAmbiguous(
                f"{len(begins)} instances' ids begin with {ref!r}", remedy="write more of it"
            )
        if not begins:
            raise InstanceNotFound(f"there is no instance {ref!r}", remedy="ramet ps -a")
        return begins[0]

    def _running(self, ref: str) -> InstanceRecord:
        record = self._actor(ref).record
        demand_agent(record)
        if record.state is not State.RUNNING:
            raise WrongState(f"instance {record.name} is {record.state}, not Running", state=record.state)
        return record

    def _view(self, record: InstanceRecord) -> InstanceView:
        ip, mac = self._host.addresses(record)
        return InstanceView(
            record,
            ip,
            mac,
            self._host.network_degraded(record),
            self._host.fork_pool(record),
            self._host.health(record),
        )
