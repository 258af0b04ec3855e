"""Named snapshots of instances: made, forked, and gone back to."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace

from ramet.core.compression import NOT_SAID, CompressionAsk, MemoryState
from ramet.core.errors import Conflict, Invalid, RametError
from ramet.core.ids import CaptureId, InstanceId, SnapshotId, is_name, mint_id
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.snapshot_schedule import ScheduledRun
from ramet.core.spec import InstanceRecord, RestorePoint, State
from ramet.core.verification import CheckedPart, Part, Proof, Verification
from ramet.core.volumes import demand_copyable
from ramet.disks.layers import LayerBroken
from ramet.effects.fork_pools import ForkPools
from ramet.effects.restore_point import kept
from ramet.effects.site import Site
from ramet.effects.snapshot_files import SnapshotFiles
from ramet.instance import remedies
from ramet.instance.fleet import Fleet
from ramet.instance.fleet_types import (
    ForkOutcome,
    ForkPoolStatus,
    InstanceNotFound,
    InstanceView,
    WrongState,
)
from ramet.snapshots.catalog import SnapshotCatalog
from ramet.snapshots.manifest import MANIFEST_FILE
from ramet.snapshots.store import CaptureBroken
from ramet.vmm.port import SnapshotIncompatible

_KIND_NEEDS: Mapping[SnapshotKind, frozenset[State]] = {
    SnapshotKind.STANDBY: frozenset({State.RUNNING, State.STANDBY}),
    SnapshotKind.STOPPED: frozenset({State.STOPPED}),
}


class ForeignSnapshot(Conflict):
    """The snapshot is of another instance."""

    code = "foreign_snapshot"


class NamedSnapshots:
    """The snapshots of a site's instances. `ref` is a snapshot's id, its name or a beginning of its id."""

    def __init__(self, site: Site, catalog: SnapshotCatalog, fleet: Fleet, pools: ForkPools) -> None:
        self._site, self._catalog, self._fleet, self._pools = site, catalog, fleet, pools
        self._files = SnapshotFiles(site, catalog)
        for snapshot in catalog.list():
            site.volumes.attachments.keep(snapshot)
            pools.see_snapshot(snapshot)

    def list(
        self,
        *,
        source: str | None = None,
        kind: SnapshotKind | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[SnapshotRecord]:
        """Return the snapshots that are all of what is not None, oldest first. `source`: an id or a name."""
        return self._catalog.list(source=source, kind=kind, name=name, tags=tags)

    def get(self, ref: str) -> SnapshotRecord:
        """Return one snapshot.

        Raises:
            SnapshotNotFound, SnapshotAmbiguous: as they say; so does every other method with a `ref`.
        """
        return self._catalog.get(ref)

    def memory_state(self, snapshot: SnapshotRecord) -> MemoryState | None:
        """Return how the memory of a snapshot lies on the disk; None: it has none."""
        capture = snapshot.point.capture
        return None if capture is None else self._site.captures.compressor.state(capture)

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
        """Take a snapshot of an instance, which goes on; durable when this returns.

        Its memory is compressed afterwards, in the background, if `compression` says so; where it says
        nothing, the instance is asked, then the server. `run`: of which schedule it is; None: somebody asks.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            Invalid: not a name.
            SnapshotNameTaken: the instance has one of that name.
            WrongState: Standby is of what runs or sleeps, Stopped of what is stopped.
            VolumeWritable: Standby is of what writes to no volume, which would not go back with it.
            RametError: it could not be taken; nothing of it is left.
        """
        record = self._fleet.get(instance).record
        if record.state not in _KIND_NEEDS[kind]:
            raise WrongState(
                f"{record.name} is {record.state} and has no snapshot of kind {kind}",
                remedy=remedies.to_snapshot(record, kind),
                state=record.state,
            )
        if kind is SnapshotKind.STANDBY:
            demand_copyable(record.spec.volumes)
        if name is not None:
            if not is_name(name):
                raise Invalid(
                    f"{name!r} is not a name", remedy="use up to 63 lowercase letters, digits and dashes"
                )
            self._catalog.reserve(record.id, name)
        made, attachments = SnapshotId(mint_id()), self._site.volumes.attachments
        mounts = record.spec.volumes if kind is SnapshotKind.STANDBY else ()
        try:
            with attachments.keeping(made, f"snapshot {name or made}", mounts):
                async with self._fleet.restore_point(
                    record.id, with_memory=kind is SnapshotKind.STANDBY
                ) as point:
                    resident_bytes = self._see_memory(record, point, compression)
                    snapshot = SnapshotRecord(
                        id=made,
                        name=name,
                        kind=kind,
                        source=record.id,
                        source_name=record.name,
                        spec=record.spec,
                        point=point,
                        created_at=time.time(),
                        memory_bytes=resident_bytes,
                        disk_bytes=self._site.layers.disk_bytes(point.layer),
                        tags=dict(tags),
                        run=run,
                    )
                    self._catalog.add(snapshot)
                    return snapshot
        finally:
            if name is not None:
                self._catalog.give_back(record.id, name)

    def _see_memory(self, record: InstanceRecord, point: RestorePoint, compression: CompressionAsk) -> int:
        """Have memory that was just stored be compressed, if it is to be; returns what it takes, in bytes."""
        if point.capture is None:
            return 0
        resident_bytes = self._site.captures.manifest(point.capture).resident_bytes
        how = compression.over(record.spec.compression).resolve(self._site.compression)
        if how is not None:
            self._site.captures.compress(point.capture, how)
        return resident_bytes

    async def delete(self, ref: str) -> None:
        """Remove a snapshot; instances that came from it live on.

        Raises:
            SnapshotUnwritable: the disk refuses; it is still there.
        """
        snapshot = self._catalog.get(ref)
        self._catalog.delete(snapshot.id)
        self._site.volumes.attachments.give_up(snapshot.id)
        self._pools.see_snapshot(snapshot, is_gone=True)

    def set_fork_pool(self, ref: str, size: int) -> SnapshotRecord:
        """Have `size` children of a snapshot made ahead of its next forks, from here on.

        Raises:
            Invalid: it has no memory that a VMM could wait for.
            SnapshotUnwritable: the disk refuses; nothing was changed.
        """
        snapshot = self._catalog.get(ref)
        if size and snapshot.point.capture is None:
            raise Invalid(
                "A snapshot of kind Stopped has no memory, and what is forked from it boots",
                remedy="take one of kind Standby",
                field="size",
            )
        snapshot = replace(snapshot, fork_pool=size)
        self._catalog.replace(snapshot)
        self._pools.see_snapshot(snapshot)
        return snapshot

    def fork_pool(self, snapshot: SnapshotRecord) -> ForkPoolStatus | None:
        """Return how full the pool of a snapshot is; None: it has none."""
        return self._pools.status(snapshot.id)

    def export(self, ref: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read a snapshot as a stream; errors as of `SnapshotFiles.reading`."""
        return self._files.reading(ref)

    async def verify(self, ref: str) -> Verification:
        """Look whether a snapshot still is what was stored; whatever is wrong is in what this returns."""
        site, snapshot = self._site, self._catalog.get(ref)
        point = snapshot.point
        parts: tuple[CheckedPart, ...] = ()
        try:
            with kept(site, point):
                if point.capture is not None:
                    parts = await site.captures.verify(point.capture)
                return Verification((*parts, *await self._catalog.verify_disk(snapshot.id)))
        except CaptureBroken as error:
            return Verification((CheckedPart(Part.MEMORY, MANIFEST_FILE, 0, Proof.READABLE, str(error)),))
        except LayerBroken as error:
            lost = CheckedPart(Part.DISK, site.layers.path(point.layer).name, 0, Proof.READABLE, str(error))
            return Verification((*parts, lost))

    async def import_file(self, chunks: AsyncIterator[bytes], name: str | None = None) -> SnapshotRecord:
        """Make a snapshot of such a stream; errors as of `SnapshotFiles.add`."""
        snapshot = await self._files.add(chunks, name)
        self._site.volumes.attachments.keep(snapshot)
        return snapshot

    async def fork(
        self,
        ref: str,
        names: Sequence[str],
        *,
        target: State | None = None,
        hypervisor: str | None = None,
    ) -> Sequence[ForkOutcome]:
        """Make one child of a snapshot for each of `names`; outcomes in their order.

        Args:
            target: Running, Standby or Stopped; None: Running if it has memory, Stopped if it has not.
            hypervisor: what its children are to run on, None: what it was taken on.

        Raises:
            LayerBroken, CaptureBroken: it has lost a part.
            SnapshotIncompatible: it has memory, which goes on where it was taken only.
        """
        snapshot = _on(self._catalog.get(ref), hypervisor)
        if target is None:
            target = State.STOPPED if snapshot.kind is SnapshotKind.STOPPED else State.RUNNING
        point = snapshot.point
        if target is State.STOPPED:
            point = replace(point, capture=None)
        with kept(self._site, point):
            pool = snapshot.id if target is State.RUNNING else None
            return await self._fleet.copy(
                point, snapshot.spec, snapshot.source, names, target=target, pool=pool
            )

    async def restore(
        self, instance: str, ref: str, *, target: State | None = None, hypervisor: str | None = None
    ) -> InstanceView:
        """Put an instance back to one of its own snapshots; it keeps its id, its name and its address.

        What it was before is there until the record says otherwise, in one transaction.

        Args:
            target, hypervisor: as of `fork`.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            SnapshotIncompatible: as of `fork`.
            ForeignSnapshot: it is another instance's.
            WrongState: it runs.
            RametError: it was put back, and could not be brought to `target`.
        """
        snapshot, record = _on(self._catalog.get(ref), hypervisor), self._fleet.get(instance).record
        if snapshot.source != record.id:
            raise ForeignSnapshot(
                f"the snapshot is of instance {snapshot.source_name}, not of {record.name}",
                remedy=f"ramet snapshot fork {snapshot.id} NAME",
            )
        if target is None:
            target = State.STOPPED if snapshot.kind is SnapshotKind.STOPPED else State.RUNNING
        capture = None if target is State.STOPPED else snapshot.point.capture
        await self._fleet.see_through(lambda: self._rewind(record, snapshot, capture))
        return await self._fleet.bring_to(record.id, target)

    async def _rewind(
        self, record: InstanceRecord, snapshot: SnapshotRecord, capture: CaptureId | None
    ) -> None:
        site = self._site
        with kept(site, snapshot.point):
            try:
                if capture is not None:
                    site.captures.hold(capture, record.id)
                layer = site.layers.create_on(
                    snapshot.point.layer, snapshot.spec.disk_bytes, form=site.disk_form(snapshot.spec)
                )
                try:
                    await self._fleet.rewind(record.id, snapshot.spec, layer, capture)
                except RametError:
                    site.layers.release(layer)
                    raise
            except RametError:
                # Refused. Of what is cut short by a daemon that leaves, the next one finds what is needed.
                if capture is not None and capture != self._memory_of(record.id):
                    site.captures.release(capture, record.id)
                raise

    def _memory_of(self, instance: InstanceId) -> CaptureId | None:
        with suppress(InstanceNotFound):
            return self._fleet.get(instance).record.capture
        return None


def _on(snapshot: SnapshotRecord, hypervisor: str | None) -> SnapshotRecord:
    """Return a snapshot as one of another hypervisor; None: as it is.

    Raises:
        SnapshotIncompatible: it has memory.
    """
    if hypervisor is None or hypervisor == snapshot.spec.hypervisor:
        return snapshot
    if snapshot.point.capture is not None:
        raise SnapshotIncompatible(
            f"a snapshot with memory goes on with its own hypervisor, {snapshot.spec.hypervisor}, only",
            remedy="leave the hypervisor out",
        )
    return replace(snapshot, spec=replace(snapshot.spec, hypervisor=hypervisor))
