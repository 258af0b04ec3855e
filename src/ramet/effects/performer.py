"""The performer of all actions: from an action's type to the module that carries it out."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId, LayerId, mint_id
from ramet.core.spec import InstanceRecord, InstanceSpec, State
from ramet.effects.boot import boot
from ramet.effects.end import destroy, release, shut_down, watch
from ramet.effects.folder import write_spec
from ramet.effects.fork import LiveForkUnsupported, fork
from ramet.effects.guest_exec import start_exec
from ramet.effects.guest_files import open_archive, put_archive, stat_path
from ramet.effects.hold import reach
from ramet.effects.reconcile import CAPTURE
from ramet.effects.site import Rig, Site
from ramet.effects.start import start
from ramet.effects.thaw import thaw
from ramet.instance.fleet_types import ExecCommand, ExecSession, InstanceNotFound, PathStat, WrongState
from ramet.instance.transitions import (
    Action,
    AwaitGuest,
    Boot,
    Booted,
    Destroy,
    Emit,
    Event,
    Failed,
    Fork,
    Forked,
    LayerSwitched,
    Reach,
    Ready,
    Release,
    ShutDown,
    SilenceEnded,
    Start,
    Thaw,
    Watch,
)
from ramet.logs.operations import Operations
from ramet.logs.reading import read_logs
from ramet.net.slots import NoEndpoint
from ramet.snapshots.capture import Source, Taken, take_capture
from ramet.snapshots.flight import Flights
from ramet.store.database import StateUnwritable
from ramet.telemetry.timings import Timings, operation
from ramet.vmm.port import LiveCapture

log = structlog.get_logger(__name__)

BOOT_ANSWER_TIMEOUT_S: Final = 90.0
EXIT_TIMEOUT_S: Final = 5.0
END_RETRY_S: Final = 2.0
"""How soon a journal entry is ended again that could not be."""

Tell = Callable[[InstanceId, Event], Awaitable[None]]
Look = Callable[[InstanceId], InstanceRecord]


class SitePerformer:
    """Carries out actions on a site. `connect` it to the fleet before the first action."""

    def __init__(self, site: Site, group: TaskGroup) -> None:
        self._site, self._group = site, group
        self._operations = Operations(site.folder.instances)
        self._flights = Flights(self._take_capture, group)
        self._making: dict[InstanceId, int] = {}
        self._timings: dict[InstanceId, Timings] = {}
        self._kept: dict[InstanceId, tuple[InstanceSpec, LayerId | None]] = {}
        self._turns: defaultdict[InstanceId, anyio.Lock] = defaultdict(anyio.Lock)
        """What ends a run and what begins the next come one after the other, as they were decided."""
        self._tell: Tell | None = None
        self._look: Look | None = None

    def connect(self, tell: Tell, look: Look) -> None:
        """Learn how to tell an instance what happened to it, and how to see its record."""
        self._tell, self._look = tell, look

    # What the fleet asks

    def mint(self, record: InstanceRecord) -> InstanceRecord:
        with self._site.admission.minting(record, self._running_parent(record)):
            return self._mint(record)

    def _mint(self, record: InstanceRecord) -> InstanceRecord:
        site = self._site
        if record.spec.has_network:
            slot = site.network.reserve(record.id).slot
            record = replace(record, identity=replace(record.identity, slot=slot))
        try:
            with site.database.transaction():
                entry = site.database.begin("make", record.id)
                site.database.save(record)
        except BaseException:
            site.network.give_back(record.id)
            raise
        self._making[record.id] = entry
        return record

    def save(self, record: InstanceRecord) -> None:
        database = self._site.database
        with self._site.admission.changing(record), database.transaction():
            database.save(record)
            if record.id in self._making:
                database.end(self._making[record.id])
        self._making.pop(record.id, None)
        self._keep_spec(record)
        self._operations.tell(record)

    def _running_parent(self, record: InstanceRecord) -> InstanceRecord | None:
        """Return whom a new instance is forked from, if that takes a capture."""
        assert self._look is not None, "connect() comes first"
        parent = record.identity.parent
        if parent is not None:
            with suppress(InstanceNotFound):
                found = self._look(parent)
                return found if found.state is State.RUNNING else None
        return None

    def _keep_spec(self, record: InstanceRecord) -> None:
        """Keep beside the disk what is needed to find it without the database, when that has changed."""
        kept = (record.spec, record.layer)
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

    def timings_ms(self, instance: InstanceId) -> dict[str, float]:
        timings = self._timings.pop(instance, None)
        return {} if timings is None else timings.phases_ms

    async def open_exec(self, record: InstanceRecord, command: ExecCommand) -> ExecSession:
        return await start_exec(self._rig(record), command)

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

    def _rig(self, record: InstanceRecord) -> Rig:
        rig = self._site.rigs.get(record.id)
        if rig is None:
            raise WrongState(f"instance {record.name} has just stopped", state=record.state)
        return rig

    # What an actor asks

    async def perform(self, record: InstanceRecord, action: Action, emit: Emit) -> None:
        site = self._site
        match action:
            case Boot():
                await self._boot(record, emit)
            case Fork(source):
                await self._fork(record, source, emit)
            case Start():
                await self._start(record, emit)
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
                    await shut_down(rig)
            case Release():
                async with self._turns[record.id]:
                    await release(site, record)
            case Destroy():
                async with self._turns[record.id]:
                    # A capture that the release waited for may have told a new layer since we were asked.
                    await destroy(site, replace(record, layer=self._layer_of(record.id)))
                with site.database.transaction():
                    site.database.forget(record.id)
                    if record.id in self._making:
                        site.database.end(self._making[record.id])
                for memory in (self._making, self._timings, self._kept, self._turns):
                    memory.pop(record.id, None)
                self._operations.forget(record.id)
                site.admission.forget(record.id)

    async def _boot(self, record: InstanceRecord, emit: Emit) -> None:
        try:
            with operation("boot", hypervisor=record.spec.hypervisor, instance=record.id):
                rig, layer = await boot(self._site, record)
        except RametError as error:
            emit(Failed(error, time.time()))
            return
        emit(Booted(rig.vm.runtime, layer, time.time()))

    async def _start(self, record: InstanceRecord, emit: Emit) -> None:
        assert self._look is not None, "connect() comes first"
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

    def _is_still(self, instance: InstanceId, generation: int) -> bool:
        assert self._look is not None, "connect() comes first"
        return self._look(instance).generation == generation

    def _layer_of(self, instance: InstanceId) -> LayerId | None:
        assert self._look is not None, "connect() comes first"
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
                rig, layer = await fork(self._site, self._flights, record, source, timings)
        except RametError as error:
            emit(Failed(error, time.time()))
            return
        self._note_fork(source, record)
        emit(Forked(rig.vm.runtime, layer, time.time()))

    def _note_fork(self, source: InstanceId, child: InstanceRecord) -> None:
        assert self._look is not None, "connect() comes first"
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
        except RametError as error:
            with anyio.move_on_after(EXIT_TIMEOUT_S):
                await rig.vm.wait_exited()
                return  # A guest that was done, or failed, before it could answer: Watch tells how it ended.
            emit(Failed(error, time.time()))
            return
        emit(Ready())

    async def _take_capture(self, source: InstanceId, close_doors: Callable[[], None]) -> Taken:
        """Take a capture of a running instance, its memory counted until nobody needs it any more."""
        assert self._look is not None, "connect() comes first"
        captures, new_top = self._site.admission.captures, LayerId(mint_id())
        captures.begin(self._look(source), new_top)
        give_back = partial(captures.close, new_top)
        try:
            return replace(await self._take_counted(source, new_top, close_doors), on_close=give_back)
        except BaseException:
            give_back()
            raise

    async def _take_counted(
        self, source: InstanceId, new_top: LayerId, close_doors: Callable[[], None]
    ) -> Taken:
        assert self._tell is not None, "connect() comes first"
        assert self._look is not None, "connect() comes first"
        site, tell, record = self._site, self._tell, self._look(source)
        rig = site.rigs.get(source)
        if rig is None:
            raise WrongState(f"instance {record.name} has just stopped", state=record.state)
        if not isinstance(rig.vm, LiveCapture):
            raise LiveForkUnsupported(f"{record.spec.hypervisor} cannot fork a running instance")

        async def record_switch(new_top: LayerId) -> None:
            rig.layer = new_top
            await tell(source, LayerSwitched(new_top))

        entry = site.database.begin(CAPTURE, source, layer=new_top)
        mistaken: list[LayerId] = []
        try:
            with operation(
                "capture", hypervisor=record.spec.hypervisor, source_state=record.state, instance=source
            ):
                async with rig.capturing:
                    top = site.layers.id_of(await rig.vm.top_layer())
                    if top != rig.layer:
                        # A capture before this one had to take for done a switch that was not.
                        site.layers.hold(top)
                        mistaken.append(rig.layer)
                        await record_switch(top)
                    return await take_capture(
                        Source(
                            name=record.name,
                            vm=rig.vm,
                            workload=RigWorkload(rig, self._group),
                            layer=top,
                            memory_bytes=record.spec.memory_bytes,
                            overlay_bytes=record.spec.overlay_bytes,
                        ),
                        site.layers,
                        new_top,
                        before_pause=close_doors,
                        record_switch=record_switch,
                    )
        finally:
            if not self._try_end_capture(source, entry, mistaken):
                self._group.start_soon(self._end_capture, source, entry, mistaken)

    async def _end_capture(self, source: InstanceId, entry: int, mistaken: list[LayerId]) -> None:
        """End a capture's journal entry as soon as the disk takes it; if we leave before, a start ends it."""
        while not self._try_end_capture(source, entry, mistaken):  # noqa: ASYNC110 - nobody tells of room
            await anyio.sleep(END_RETRY_S)

    def _try_end_capture(self, source: InstanceId, entry: int, mistaken: list[LayerId]) -> bool:
        """End a capture's journal entry together with a record that tells its layer, or not at all.

        `mistaken`: layers that the record on disk may have named until then, and nobody needs.
        """
        assert self._look is not None, "connect() comes first"
        database = self._site.database
        try:
            with database.transaction():
                with suppress(InstanceNotFound):  # With the source, its layers have gone.
                    # What it has become may not have been written yet: a full disk holds nothing up.
                    database.save(self._look(source))
                database.end(entry)
        except StateUnwritable as error:
            log.info("capture_not_ended", instance=source, error=str(error))
            return False
        for layer in mistaken:
            self._site.layers.release(layer)
        return True


class RigWorkload:
    """The workload of a running instance, over whatever channel there is.

    One that could not be thawed is told again until it has answered, by a task of `group`.
    """

    def __init__(self, rig: Rig, group: TaskGroup) -> None:
        self._rig, self._group = rig, group

    async def sync(self) -> None:
        await (await self._rig.channel()).sync()

    async def freeze(self) -> None:
        await (await self._rig.channel()).freeze()

    async def thaw(self) -> None:
        try:
            await self._thaw()
        except RametError:
            # A workload must not stand still for ever because of one answer; the second error counts.
            try:
                await self._thaw()
            except RametError:
                self._group.start_soon(thaw, self._rig)
                raise

    async def _thaw(self) -> None:
        await (await self._rig.channel()).thaw()
