"""The performer of all actions: from an action's type to the module that carries it out."""

import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from dataclasses import replace
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from ramet.core.compression import CompressionAsk
from ramet.core.errors import RametError
from ramet.core.health import Health
from ramet.core.ids import CaptureId, InstanceId, LayerId
from ramet.core.spec import InstanceRecord, InstanceSpec, RestorePoint, State
from ramet.effects.arming import arm
from ramet.effects.berth import leave_berth
from ramet.effects.boot import boot
from ramet.effects.captures import Look, SourceCaptures, Tell
from ramet.effects.copy import copy
from ramet.effects.end import destroy, release, shut_down, watch
from ramet.effects.folder import write_spec
from ramet.effects.fork import fork
from ramet.effects.fork_pools import ForkPools
from ramet.effects.growth import plug_memory
from ramet.effects.guest_exec import start_exec
from ramet.effects.guest_files import open_archive, put_archive, stat_path
from ramet.effects.hold import reach
from ramet.effects.restore_point import RestorePoints
from ramet.effects.site import Rig, Site
from ramet.effects.start import start
from ramet.effects.thaw import thaw
from ramet.effects.wake import wake
from ramet.effects.write_out import write_out_s
from ramet.instance.actions import (
    Action,
    AwaitGuest,
    Boot,
    Copy,
    Destroy,
    DropLayer,
    Fork,
    Interrupt,
    Reach,
    Release,
    ShortenDisk,
    ShutDown,
    Start,
    Suspend,
    Thaw,
    Wake,
    Watch,
)
from ramet.instance.events import (
    Booted,
    Copied,
    Emit,
    Event,
    Failed,
    Forked,
    Ready,
    SilenceEnded,
    SuspendFailed,
    Woken,
)
from ramet.instance.fleet_types import (
    ExecCommand,
    ExecSession,
    ForkPoolStatus,
    InstanceNotFound,
    PathStat,
    StandbyInterrupted,
    WrongState,
)
from ramet.logs.operations import Operations
from ramet.logs.reading import read_logs
from ramet.net.slots import NoEndpoint
from ramet.telemetry.timings import Timings, operation

log = structlog.get_logger(__name__)

BOOT_ANSWER_TIMEOUT_S: Final = 90.0
EXIT_TIMEOUT_S: Final = 5.0


class SitePerformer:
    """Carries out actions on a site. `connect` it to the fleet before the first action."""

    def __init__(self, site: Site, group: TaskGroup) -> None:
        self._site, self._group = site, group
        self._operations = Operations(site.folder.instances)
        self.pools = ForkPools(site, group)
        self._captures = SourceCaptures(site, group, self._tell, self._look, self.pools)
        self._points = RestorePoints(
            site, self._captures, group, self._tell, self._look, lambda instance: self._turns[instance]
        )
        self._making: dict[InstanceId, int] = {}
        self._timings: dict[InstanceId, Timings] = {}
        self._kept: dict[InstanceId, tuple[InstanceSpec, LayerId | None, CaptureId | None]] = {}
        self._turns: defaultdict[InstanceId, anyio.Lock] = defaultdict(anyio.Lock)
        """What ends a run and what begins the next come one after the other, as they were decided."""
        self._suspending: dict[InstanceId, anyio.CancelScope] = {}
        self._fleet: tuple[Tell, Look] | None = None
        self._execs = Counter[InstanceId]()
        self._on_save: Callable[[InstanceRecord], None] = lambda record: None
        self._on_gone: Callable[[InstanceId], None] = lambda instance: None
        self._on_exec: Callable[[InstanceId], None] = lambda instance: None
        self._health_of: Callable[[InstanceId], Health | None] = lambda instance: None

    def connect(self, tell: Tell, look: Look) -> None:
        """Learn how to tell an instance what happened to it, and how to see its record."""
        self._fleet = tell, look

    def watch(
        self,
        on_save: Callable[[InstanceRecord], None],
        on_gone: Callable[[InstanceId], None] = lambda instance: None,
    ) -> None:
        """Have `on_save` be called for each record that is written, `on_gone` for each that is forgotten."""
        self._on_save, self._on_gone = on_save, on_gone

    def watch_execs(self, on_exec: Callable[[InstanceId], None]) -> None:
        """Have it be called when a command begins or ends in an instance."""
        self._on_exec = on_exec

    def ask_health(self, health_of: Callable[[InstanceId], Health | None]) -> None:
        """Learn who knows what an instance's checks have found."""
        self._health_of = health_of

    def exec_count(self, instance: InstanceId) -> int:
        """Return how many commands are open in a guest."""
        return self._execs[instance]

    async def _tell(self, instance: InstanceId, event: Event) -> None:
        assert self._fleet is not None, "connect() comes first"
        await self._fleet[0](instance, event)

    def _look(self, instance: InstanceId) -> InstanceRecord:
        assert self._fleet is not None, "connect() comes first"
        return self._fleet[1](instance)

    # What the fleet asks

    def mint(self, record: InstanceRecord, pool: str | None = None) -> InstanceRecord:
        attachments = self._site.volumes.attachments
        berth = None if pool is None else self.pools.claim(pool, record)
        if pool is None or berth is None:
            with attachments.changing(record), self._minting(record):
                return self._mint(record)
        try:
            record = berth.as_child(record)
            with attachments.changing(record), self._minting(record):
                self._begin(record, berth.entry)
        except BaseException:
            self.pools.unclaim(pool, berth)
            raise
        return record

    def _minting(self, record: InstanceRecord) -> AbstractContextManager[None]:
        return self._site.admission.minting(record, self._running_parent(record))

    def _mint(self, record: InstanceRecord) -> InstanceRecord:
        network = self._site.network
        if record.spec.has_network:
            slot = network.reserve(record.id).slot
            record = replace(record, identity=replace(record.identity, slot=slot))
        try:
            self._begin(record)
        except BaseException:
            network.give_back(record.id)
            raise
        return record

    def _begin(self, record: InstanceRecord, ended: int | None = None) -> None:
        """Journal a record that is being made; `ended` is the entry of what it takes the place of."""
        database = self._site.database
        with database.transaction():
            entry = database.begin("make", record.id)
            database.save(record)
            if ended is not None:
                database.end(ended)
        self._making[record.id] = entry

    def save(self, record: InstanceRecord) -> None:
        database, attachments = self._site.database, self._site.volumes.attachments
        with attachments.changing(record), self._site.admission.changing(record), database.transaction():
            database.save(record)
            if record.id in self._making:
                database.end(self._making[record.id])
        self._making.pop(record.id, None)
        self._site.captures.hold_only(record.capture, record.id)
        self._keep_spec(record)
        self._operations.tell(record)
        self.pools.see(record)
        self._on_save(record)

    def _running_parent(self, record: InstanceRecord) -> InstanceRecord | None:
        """Return whom a new instance is forked from, if that takes a capture."""
        parent = record.identity.parent
        if parent is not None:
            with suppress(InstanceNotFound):
                found = self._look(parent)
                return found if found.state is State.RUNNING else None
        return None

    def _keep_spec(self, record: InstanceRecord) -> None:
        """Keep beside the disk what is needed to find it without the database, when that has changed."""
        kept = (record.spec, record.layer, record.capture)
        if record.layer is None or record.is_deleting or self._kept.get(record.id) == kept:
            return
        try:
            write_spec(self._site.instance_folder(record.id), record)
        except OSError as error:
            # The database has it. Tried again with the next change.
            log.warning("spec_not_kept", instance=record.id, error=str(error))
            return
        self._kept[record.id] = kept

    def addresses(self, record: InstanceRecord) -> tuple[str | None, str | None]:
        if record.identity.slot is None:
            return None, None
        try:
            endpoint = self._site.network.endpoint(record.id)
        except NoEndpoint:
            return None, None  # It is just going.
        return str(endpoint.ip), endpoint.mac

    def network_degraded(self, record: InstanceRecord) -> str | None:
        return self._site.network.degraded(record.id)

    def fork_pool(self, record: InstanceRecord) -> ForkPoolStatus | None:
        return self.pools.status(record.id)

    def health(self, record: InstanceRecord) -> Health | None:
        return self._health_of(record.id)

    def timings_ms(self, instance: InstanceId) -> dict[str, float]:
        timings = self._timings.pop(instance, None)
        return {} if timings is None else timings.phases_ms

    async def open_exec(self, record: InstanceRecord, command: ExecCommand) -> ExecSession:
        rig = self._rig(record)
        if command.is_ours:
            return await start_exec(rig, command, lambda: None)
        self._count_exec(record.id, 1)
        try:
            return await start_exec(rig, command, lambda: self._count_exec(record.id, -1))
        except BaseException:
            self._count_exec(record.id, -1)
            raise

    def _count_exec(self, instance: InstanceId, by: int) -> None:
        self._execs[instance] += by
        if not self._execs[instance]:
            del self._execs[instance]
        self._on_exec(instance)

    async def arm(self, instance: InstanceId, on_syn: Callable[[InstanceId], None]) -> bool:
        """Have `on_syn` be called, once, when somebody asks an instance for a connection, if it sleeps.

        Tells whether it sleeps.

        Raises:
            RametError: it did not work.
        """
        async with self._turns[instance]:
            try:
                record = self._look(instance)
            except InstanceNotFound:
                self._turns.pop(instance, None)
                return False
            is_asleep = record.state is State.STANDBY and not record.is_deleting
            if is_asleep:
                await self._leave_claimed(record)
                await arm(self._site, record, on_syn)
            return is_asleep

    async def disarm(self, instance: InstanceId) -> None:
        """Have an instance not be called any more.

        Raises:
            RametError: it is, or what made it so is still there.
        """
        async with self._turns[instance]:  # One that just wakes does so on the TAP at which it was called.
            await self._site.network.disarm(instance)
            try:
                self._look(instance)
            except InstanceNotFound:
                self._turns.pop(instance, None)

    def is_armed(self, instance: InstanceId) -> bool:
        """Tell whether the next who asks an instance for a connection is noticed."""
        return self._site.network.is_waiting(instance)

    async def stat_path(self, record: InstanceRecord, path: str, *, follow_links: bool) -> PathStat:
        return await stat_path(self._rig(record), path, follow_links=follow_links)

    def open_archive(
        self, record: InstanceRecord, path: str, *, follow_links: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return open_archive(self._rig(record), path, follow_links=follow_links)

    async def put_archive(
        self, record: InstanceRecord, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool
    ) -> None:
        await put_archive(self._rig(record), path, chunks, keep_owner=keep_owner)

    def logs(
        self,
        record: InstanceRecord,
        source: str,
        tail: int,
        *,
        follow: bool,
        is_alive: Callable[[], bool],
    ) -> AsyncIterator[str]:
        folder = self._site.instance_folder(record.id)
        return read_logs(folder, source, tail, follow=follow, is_alive=is_alive)

    def restore_point(
        self, record: InstanceRecord, *, with_memory: bool
    ) -> AbstractAsyncContextManager[RestorePoint]:
        return self._points.of(record, with_memory=with_memory)

    def _rig(self, record: InstanceRecord) -> Rig:
        rig = self._site.rigs.get(record.id)
        if rig is None:
            raise WrongState(f"instance {record.name} has just stopped", state=record.state)
        return rig

    # What an actor asks

    async def perform(self, record: InstanceRecord, action: Action, emit: Emit) -> None:
        site = self._site
        self.pools.see(record)  # What has happened need not have been written down.
        match action:
            case Boot():
                await self._boot(record, emit)
            case Fork(source):
                await self._fork(record, source, emit)
            case Copy(point, becoming):
                layer = await self._copy(record, point)
                emit(Copied(layer, point.capture, becoming, time.time()))
            case Start():
                await self._start(record, emit)
            case Suspend(compression):
                await self._suspend(record, compression, emit)
            case Interrupt():
                if record.id in self._suspending:
                    self._suspending[record.id].cancel()
            case Wake():
                await self._wake(record, emit)
            case ShortenDisk():
                await self._captures.shorten_disk(record)
            case DropLayer(layer):
                site.layers.release(layer)
            case Thaw():
                rig = site.rigs.get(record.id)
                if rig is not None:
                    await thaw(rig)
            case AwaitGuest():
                await self._await_guest(record, emit)
            case Watch():
                emit(await watch(site, site.rigs[record.id]))
            case Reach(generation, before):
                outcome = await reach(site, record, lambda: self._is_still(record.id, generation))
                if outcome is not None:
                    emit(SilenceEnded(generation, before, outcome))
            case ShutDown():
                rig = site.rigs.get(record.id)
                if rig is not None:
                    await shut_down(rig, write_out_s(record.spec))
            case Release():
                async with self._turns[record.id]:
                    await release(site, record)
            case Destroy():
                async with self._turns[record.id]:
                    await self._leave_claimed(record)
                    # A capture that the release waited for may have told a new layer since we were asked.
                    await destroy(site, replace(record, layer=self._layer_of(record.id)))
                with site.database.transaction():
                    site.database.forget(record.id)
                    if record.id in self._making:
                        site.database.end(self._making[record.id])
                site.captures.hold_only(None, record.id)
                for memory in (self._making, self._timings, self._kept, self._turns):
                    memory.pop(record.id, None)
                self._operations.forget(record.id)
                site.admission.forget(record.id)
                site.volumes.attachments.forget(record.id)
                self._on_gone(record.id)

    async def _copy(self, record: InstanceRecord, point: RestorePoint) -> LayerId:
        try:
            return await copy(self._site, record, point, self.pools.claimed(record.id))
        except BaseException:
            berth = self.pools.take(record.id)
            if berth is not None and berth.layer is not None:
                self._site.layers.release(berth.layer)
            raise

    async def _leave_claimed(self, record: InstanceRecord) -> None:
        """Give up the place in which a copy was to be woken that never was."""
        berth = self.pools.claimed(record.id)
        if berth is not None:
            await leave_berth(self._site, record, berth)
            self.pools.take(record.id)

    async def _boot(self, record: InstanceRecord, emit: Emit) -> None:
        try:
            with operation("boot", hypervisor=record.spec.hypervisor, instance=record.id):
                rig, layer = await boot(self._site, record)
        except RametError as error:
            emit(Failed(error, time.time()))
            return
        emit(Booted(rig.vm.runtime, layer, time.time()))

    async def _start(self, record: InstanceRecord, emit: Emit) -> None:
        try:
            with operation(
                "start", hypervisor=record.spec.hypervisor, source_state=State.STOPPED, instance=record.id
            ):
                async with self._turns[record.id]:
                    # A capture that its VMM's end cut short may have told a new layer since we were asked.
                    rig, layer = await start(self._site, record, lambda: self._layer_of(record.id))
        except RametError as error:
            emit(Failed(error, time.time()))
            return
        emit(Booted(rig.vm.runtime, layer, time.time()))

    async def _suspend(self, record: InstanceRecord, compression: CompressionAsk, emit: Emit) -> None:
        with anyio.CancelScope() as scope:
            self._suspending[record.id] = scope
            try:
                with operation("standby", hypervisor=record.spec.hypervisor, instance=record.id):
                    await self._captures.suspend(record.id, compression)
            finally:
                del self._suspending[record.id]
        if scope.cancelled_caught:
            emit(SuspendFailed(StandbyInterrupted(f"instance {record.name} was asked to go on")))

    async def _wake(self, record: InstanceRecord, emit: Emit) -> None:
        with operation(
            "wake", hypervisor=record.spec.hypervisor, source_state=State.STANDBY, instance=record.id
        ) as timings:
            self._timings[record.id] = timings
            async with self._turns[record.id]:
                rig, layer = await wake(self._site, record, self.pools.take(record.id))
        emit(Woken(rig.vm.runtime, layer, time.time()))
        former = record.layer
        assert former is not None, "it woke on it"
        self._site.layers.release(former)  # It stays as long as it is below another.

    def _is_still(self, instance: InstanceId, generation: int) -> bool:
        return self._look(instance).generation == generation

    def _layer_of(self, instance: InstanceId) -> LayerId | None:
        return self._look(instance).layer

    async def _fork(self, record: InstanceRecord, source: InstanceId, emit: Emit) -> None:
        try:
            with operation(
                "fork",
                hypervisor=record.spec.hypervisor,
                source_state=State.RUNNING,
                instance=record.id,
                source=source,
            ) as timings:
                self._timings[record.id] = timings
                rig, layer = await fork(
                    self._site, self._captures.live, record, source, timings, self.pools.take(record.id)
                )
        except RametError as error:
            emit(Failed(error, time.time()))
            return
        self._note_fork(source, record)
        emit(Forked(rig.vm.runtime, layer, time.time()))

    def _note_fork(self, source: InstanceId, child: InstanceRecord) -> None:
        with suppress(InstanceNotFound):  # A source may be deleted while its children start.
            if not self._look(source).is_deleting:
                self._operations.note(source, "forked", child=child.name, id=child.id)

    async def _await_guest(self, record: InstanceRecord, emit: Emit) -> None:
        rig = self._site.rigs.get(record.id)
        if rig is None:
            return
        try:
            with (
                operation("await_guest", hypervisor=record.spec.hypervisor, instance=record.id),
                rig.vm.unless_starved(),
            ):
                await rig.channel(BOOT_ANSWER_TIMEOUT_S)
                await plug_memory(rig, record)
        except RametError as error:
            with anyio.move_on_after(EXIT_TIMEOUT_S):
                await rig.vm.wait_exited()
                return  # A guest that was done, or failed, before it could answer: Watch tells how it ended.
            emit(Failed(error, time.time()))
            return
        emit(Ready())
