"""Named snapshots that live in memory, with the promises of the real ones."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ramet.core.compression import NOT_SAID, CompressionAsk, MemoryState
from ramet.core.errors import Invalid, RametError
from ramet.core.ids import CaptureId, LayerId, SnapshotId
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.snapshot_schedule import ScheduledRun
from ramet.core.spec import RestorePoint, State
from ramet.core.verification import CheckedPart, Part, Proof, Verification
from ramet.effects.snapshots import ForeignSnapshot
from ramet.instance import remedies
from ramet.instance.fleet_types import ForkOutcome, ForkPoolStatus, InstanceView, WrongState
from ramet.snapshots.catalog import SnapshotAmbiguous, SnapshotNameTaken, SnapshotNotFound
from ramet.snapshots.export_file import BadExport

if TYPE_CHECKING:
    from tests.api.stand_in import StandInFleet

NEEDS = {
    SnapshotKind.STANDBY: (State.RUNNING, State.STANDBY),
    SnapshotKind.STOPPED: (State.STOPPED,),
}


class StandInSnapshots:
    """Snapshots of `fleet`, whose instances go back to nothing but a state."""

    def __init__(self, fleet: "StandInFleet") -> None:
        self._fleet = fleet
        self.records: dict[str, SnapshotRecord] = {}
        self.filling = b""
        """What an exported file ends with, beyond the record."""
        self.breaks = False
        """Whether what is exported breaks off."""
        self.cut: list[RametError] = []
        """How streams that were imported broke off."""
        self.memory: dict[str, MemoryState] = {}
        self.damage: dict[str, tuple[str, int]] = {}
        """What is wrong with the memory of a snapshot, and in which chunk."""

    def put(
        self,
        instance: str,
        kind: SnapshotKind = SnapshotKind.STANDBY,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> SnapshotRecord:
        """Have a snapshot from now on."""
        source = self._fleet.get(instance).record
        has_memory = kind is SnapshotKind.STANDBY
        record = SnapshotRecord(
            id=SnapshotId(self._fleet.mint_id()),
            name=name,
            kind=kind,
            source=source.id,
            source_name=source.name,
            spec=source.spec,
            point=RestorePoint(LayerId("layer"), CaptureId("capture") if has_memory else None),
            created_at=1_700_000_002.5,
            memory_bytes=90 << 20 if has_memory else 0,
            disk_bytes=1 << 20,
            tags=tags or {},
        )
        self.records[record.id] = record
        return record

    def list(
        self,
        *,
        source: str | None = None,
        kind: SnapshotKind | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Sequence[SnapshotRecord]:
        return [
            record
            for record in self.records.values()
            if source in (None, record.source, record.source_name)
            and kind in (None, record.kind)
            and name in (None, record.name)
            and (tags or {}).items() <= record.tags.items()
        ]

    def get(self, ref: str) -> SnapshotRecord:
        found = [
            record for record in self.records.values() if record.name == ref or record.id.startswith(ref)
        ]
        if not found:
            raise SnapshotNotFound(f"there is no snapshot {ref}", remedy="ramet snapshot ls")
        if len(found) > 1:
            raise SnapshotAmbiguous(f"{len(found)} snapshots are called {ref}", remedy="use the id")
        return found[0]

    def memory_state(self, snapshot: SnapshotRecord) -> MemoryState | None:
        return None if snapshot.point.capture is None else self.memory.get(snapshot.id, MemoryState())

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
        source = self._fleet.get(instance).record
        if source.state not in NEEDS[kind]:
            remedy = remedies.to_snapshot(source, kind)
            raise WrongState(f"{source.name} is {source.state}", remedy=remedy)
        if name is not None and self.list(source=source.id, name=name):
            raise SnapshotNameTaken(f"the instance has a snapshot called {name}", remedy="choose another")
        record = replace(self.put(source.id, kind, name, tags), run=run)
        self.records[record.id] = record
        if compression.how is not None:
            self.memory[record.id] = MemoryState("compressing", compression.how)
        return record

    async def delete(self, ref: str) -> None:
        del self.records[self.get(ref).id]

    def set_fork_pool(self, ref: str, size: int) -> SnapshotRecord:
        record = self.get(ref)
        if size and record.point.capture is None:
            raise Invalid("it has no memory", remedy="take one of kind Standby")
        self.records[record.id] = replace(record, fork_pool=size)
        return self.records[record.id]

    def fork_pool(self, snapshot: SnapshotRecord) -> ForkPoolStatus | None:
        return None

    async def verify(self, ref: str) -> Verification:
        record = self.get(ref)
        damage, chunk = self.damage.get(record.id, ("", None))
        memory = CheckedPart(Part.MEMORY, "ramet-memory", record.memory_bytes, Proof.CHECKSUMS, damage, chunk)
        disk = CheckedPart(Part.DISK, "layer.qcow2", record.disk_bytes, Proof.CHECKSUMS)
        return Verification((memory, disk) if record.point.capture is not None else (disk,))

    @asynccontextmanager
    async def export(self, ref: str) -> AsyncIterator[AsyncIterator[bytes]]:
        record = self.get(ref)

        async def chunks() -> AsyncIterator[bytes]:
            yield record.to_json().encode() + b"\n"
            if self.breaks:
                raise BadExport("the disk broke")
            if self.filling:
                yield self.filling

        yield chunks()

    async def import_file(self, chunks: AsyncIterator[bytes], name: str | None = None) -> SnapshotRecord:
        try:
            head, _, filling = b"".join([chunk async for chunk in chunks]).partition(b"\n")
        except RametError as error:
            self.cut.append(error)
            raise
        if filling != self.filling or not head.startswith(b"{"):
            raise BadExport("the exported snapshot is cut off")
        record = SnapshotRecord.from_json(head.decode())
        name = name or record.name
        if name is not None and self.list(source=record.source, name=name):
            raise SnapshotNameTaken(f"the instance has a snapshot called {name}", remedy="choose another")
        record = replace(record, id=SnapshotId(self._fleet.mint_id()), name=name)
        self.records[record.id] = record
        return record

    async def fork(
        self,
        ref: str,
        names: Sequence[str],
        *,
        target: State | None = None,
        hypervisor: str | None = None,
    ) -> Sequence[ForkOutcome]:
        record = _on(self.get(ref), hypervisor)
        return self._fleet.copy(record.spec, record.source, names, _target(record, target))

    async def restore(
        self, instance: str, ref: str, *, target: State | None = None, hypervisor: str | None = None
    ) -> InstanceView:
        record, found = self.get(ref), self._fleet.get(instance).record
        if record.source != found.id:
            raise ForeignSnapshot(
                f"it is of {record.source_name}", remedy=f"ramet snapshot fork {record.id} NAME"
            )
        if found.state is State.RUNNING:
            raise WrongState(f"{found.name} is Running", remedy=f"ramet stop {found.name}")
        self._fleet.set(found.name, _target(record, target))
        return self._fleet.get(found.id)


def _on(record: SnapshotRecord, hypervisor: str | None) -> SnapshotRecord:
    return replace(record, spec=replace(record.spec, hypervisor=hypervisor or record.spec.hypervisor))


def _target(record: SnapshotRecord, target: State | None) -> State:
    if target is not None:
        return target
    return State.RUNNING if record.kind is SnapshotKind.STANDBY else State.STOPPED
