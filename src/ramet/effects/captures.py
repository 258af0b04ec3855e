"""Captures of running instances, to be forked or stored, each with an entry in the journal while it is taken.

The entry names the new disk layer that the source is switched to, so that what it writes there is found
whenever we are killed. It ends together with a record that tells the layer.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from ramet.core.compression import CompressionAsk
from ramet.core.errors import RametError
from ramet.core.ids import CaptureId, InstanceId, LayerId, mint_id
from ramet.core.spec import InstanceRecord, RestorePoint
from ramet.effects.folder import base_of
from ramet.effects.fork_pools import ForkPools
from ramet.effects.site import Rig, Site
from ramet.effects.thaw import thaw
from ramet.effects.write_out import write_out_s
from ramet.guest.channel import SYNC_TIMEOUT_S
from ramet.instance.events import Event, LayerSwitched, Suspended
from ramet.instance.fleet_types import InstanceNotFound, WrongState
from ramet.snapshots.capture import (
    OpenCapture,
    Source,
    Taken,
    open_memory_capture,
    shorten_chain,
    take_capture,
)
from ramet.snapshots.flight import Flights
from ramet.snapshots.store import CaptureStore
from ramet.snapshots.suspend import suspend
from ramet.store.database import StateUnwritable
from ramet.telemetry.timings import operation
from ramet.vmm.port import Capture, LiveCapture, LiveForkUnsupported

CAPTURE: Final = "capture"
"""The journal's word for a capture; its fact `layer` is the new top that the source is to write to."""
SUSPEND: Final = "suspend"
"""The journal's word for storing the memory of an instance that then ends; its fact `capture` is where."""
END_RETRY_S: Final = 2.0
"""How soon a journal entry is ended again that could not be."""

Tell = Callable[[InstanceId, Event], Awaitable[None]]
Look = Callable[[InstanceId], InstanceRecord]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A capture of a running instance on the disk, and the layer frozen with it. Held until `close`."""

    point: RestorePoint
    taken: Taken
    captures: CaptureStore
    holder: str

    def close(self) -> None:
        self.taken.close()
        assert self.point.capture is not None
        self.captures.release(self.point.capture, self.holder)


class SourceCaptures:
    """Takes captures of the instances of a site; one at a time of each, shared by all who wait for it."""

    def __init__(self, site: Site, group: TaskGroup, tell: Tell, look: Look, pools: ForkPools) -> None:
        self._site, self._group, self._tell, self._look = site, group, tell, look
        self._pools = pools
        self.live = Flights(self._take_live, group)
        """Of memory in memory, for children that run at once."""
        self.stored = Flights(self._take_stored, group)
        """Of memory on the disk, for what is to outlive us."""

    async def suspend(self, source: InstanceId, compression: CompressionAsk) -> None:
        """Store the memory of a running instance, tell it so, and end its VMM; later it may be compressed.

        Raises:
            RametError: it did not work; the instance runs on.
        """
        captures, (record, rig) = self._site.captures, self._source(source)
        vm = _capturable(record, rig)
        capture, holder = CaptureId(mint_id()), f"suspend {source}"
        entry = self._site.database.begin(SUSPEND, source, capture=capture)

        async def end() -> None:
            captures.hold(capture, source)
            await self._tell(source, Suspended(capture, time.time()))
            with suppress(InstanceNotFound):
                captures.hold_only(self._look(source).capture, source)  # It may have ended by itself.
            await vm.kill()

        try:
            async with rig.capturing:
                ask = compression.over(record.spec.compression)
                how = ask.resolve(self._site.compression)
                # What is compressed is compressed as a whole, so it is stored as one.
                base = base_of(self._site.instance_folder(source)) if how is None else None
                with captures.draft(capture, record.spec.memory_bytes_max, holder, base) as draft:
                    if how is not None:
                        draft.compress_later(how, ask.delay_s or 0.0)
                    try:
                        await suspend(vm, RigWorkload(rig, self._group, write_out_s(record.spec)), draft, end)
                    finally:
                        captures.release(capture, holder)
        finally:
            self._end_entry(source, entry, [])

    async def shorten_disk(self, record: InstanceRecord) -> None:
        """Draw the layers of a running instance's disk together, if they are many. Never fails.

        Each sleep and each copy of what is stopped leaves one more.
        """
        rig, layers = self._site.rigs.get(record.id), self._site.layers
        if rig is None or not isinstance(rig.vm, LiveCapture):
            return
        try:
            async with rig.capturing:
                await shorten_chain(rig.vm, rig.layer, layers)
        except RametError as error:  # It is only longer than need be; the next capture tries again.
            log.info("disk_not_shortened", instance=record.id, error=str(error))

    async def _take_live(self, source: InstanceId, close_doors: Callable[[], None]) -> Taken:
        """Take a capture of a running instance, its memory counted until nobody needs it any more."""
        counted, new_top = self._site.admission.captures, LayerId(mint_id())
        counted.begin(self._look(source), new_top)
        pooled: Capture | None = None

        def open_capture(memory_bytes: int) -> Capture:
            nonlocal pooled
            pooled = self._pools.hand_over(source, self._site.rigs[source].layer)
            return pooled or open_memory_capture(memory_bytes)

        def close_all_doors() -> None:
            self._pools.close_doors(source)
            close_doors()

        def give_back() -> None:
            counted.close(new_top)
            self._pools.landed(source, pooled)

        try:
            taken = await self._take(source, new_top, close_all_doors, open_capture)
        except BaseException:
            give_back()
            raise
        return replace(taken, on_close=give_back)

    async def _take_stored(self, source: InstanceId, close_doors: Callable[[], None]) -> Stored:
        captures, capture = self._site.captures, CaptureId(mint_id())
        holder = f"capture {capture}"
        with captures.draft(capture, self._look(source).spec.memory_bytes_max, holder) as draft:
            new_top = LayerId(mint_id())
            taken = await self._take(source, new_top, close_doors, lambda _: draft.capture)
            try:
                await draft.commit()
            except BaseException:
                taken.close()
                raise
        return Stored(RestorePoint(taken.frozen, capture), taken, captures, holder)

    async def _take(
        self,
        source: InstanceId,
        new_top: LayerId,
        close_doors: Callable[[], None],
        open_capture: OpenCapture,
    ) -> Taken:
        site = self._site
        record, rig = self._source(source)
        vm = _capturable(record, rig)

        async def record_switch(new_top: LayerId) -> None:
            before, rig.layer = rig.layer, new_top
            await self._tell(source, LayerSwitched(new_top, before))
            with suppress(InstanceNotFound):
                if self._look(source).layer != new_top:  # It has ended, and was put back to a snapshot.
                    site.layers.release(new_top)

        entry = site.database.begin(CAPTURE, source, layer=new_top)
        mistaken: list[LayerId] = []
        try:
            with operation(
                "capture", hypervisor=record.spec.hypervisor, source_state=record.state, instance=source
            ):
                async with rig.capturing:
                    top = site.layers.id_of(await vm.top_layer())
                    if top != rig.layer:
                        # A capture before this one had to take for done a switch that was not.
                        site.layers.hold(top)
                        mistaken.append(rig.layer)
                        await record_switch(top)
                    return await take_capture(
                        Source(
                            name=record.name,
                            vm=vm,
                            workload=RigWorkload(rig, self._group, write_out_s(record.spec)),
                            layer=top,
                            memory_bytes=record.spec.memory_bytes_max,
                            disk_bytes=record.spec.disk_bytes,
                        ),
                        site.layers,
                        new_top,
                        open_capture=open_capture,
                        before_pause=close_doors,
                        record_switch=record_switch,
                    )
        finally:
            self._end_entry(source, entry, mistaken)

    def _source(self, source: InstanceId) -> tuple[InstanceRecord, Rig]:
        record = self._look(source)
        rig = self._site.rigs.get(source)
        if rig is None:
            raise WrongState(f"instance {record.name} has just stopped", state=record.state)
        return record, rig

    def _end_entry(self, source: InstanceId, entry: int, mistaken: list[LayerId]) -> None:
        if not self._try_end_entry(source, entry, mistaken):
            self._group.start_soon(self._end_entry_at_last, source, entry, mistaken)

    async def _end_entry_at_last(self, source: InstanceId, entry: int, mistaken: list[LayerId]) -> None:
        """End a capture's journal entry as soon as the disk takes it; if we leave before, a start ends it."""
        while not self._try_end_entry(source, entry, mistaken):  # noqa: ASYNC110 - nobody tells of room
            await anyio.sleep(END_RETRY_S)

    def _try_end_entry(self, source: InstanceId, entry: int, mistaken: list[LayerId]) -> bool:
        """End a capture's journal entry together with a record that tells of it, or not at all.

        `mistaken`: layers that the record on disk may have named until then, and nobody needs.
        """
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

    One that could not be thawed is told again until it has answered, by a task of `group`. `write_out_s` is
    how much longer than others it may take to sync.
    """

    def __init__(self, rig: Rig, group: TaskGroup, write_out_s: float) -> None:
        self._rig, self._group, self._write_out_s = rig, group, write_out_s

    async def sync(self) -> None:
        await (await self._rig.channel()).sync(timeout_s=SYNC_TIMEOUT_S + self._write_out_s)

    async def freeze(self) -> None:
        self._rig.still.begin()
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
        self._rig.still.end()


def _capturable(record: InstanceRecord, rig: Rig) -> LiveCapture:
    if not isinstance(rig.vm, LiveCapture):
        raise LiveForkUnsupported(f"{record.spec.hypervisor} cannot capture a running instance")
    return rig.vm
