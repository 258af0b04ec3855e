"""Named snapshots: a file for each, and a snapshot exists when its file does.

```
snapshots/<id>.json          a SnapshotRecord
snapshots/<id>.disk.json     the checksums of its disk, made later: see `verifier`
```

What a record names, its frozen layer and its stored capture, is held for it as long as it is there.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from ramet.core.errors import Broken, Conflict, NotFound
from ramet.core.ids import InstanceId, SnapshotId
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.verification import CheckedPart, Part
from ramet.disks.layers import LayerBroken, LayerStore
from ramet.snapshots.checksums import Found
from ramet.snapshots.store import CaptureBroken, CaptureStore
from ramet.snapshots.verifier import Verifier, look_at_disk_apart
from ramet.store.paths import PART_SUFFIX, sync_folder, write_whole

_SUFFIX: Final = ".json"
_DISK_SUFFIX: Final = ".disk.json"

log = structlog.get_logger(__name__)


class SnapshotNotFound(NotFound):
    """No snapshot has this id, name or beginning of an id."""

    code = "snapshot_not_found"


class SnapshotAmbiguous(Conflict):
    """Several snapshots have this name, or ids that begin like this."""

    code = "snapshot_ambiguous"


class SnapshotNameTaken(Conflict):
    """Another snapshot of the same instance has this name, or is being made under it."""

    code = "snapshot_name_taken"


class SnapshotUnwritable(Broken):
    """A snapshot cannot be written down, or not be removed."""

    code = "snapshot_unwritable"


class SnapshotUnreadable(Broken):
    """The file of a snapshot is damaged."""

    code = "snapshot_unreadable"


class SnapshotCatalog:
    """The snapshots of a data folder. For the event loop's thread."""

    def __init__(self, folder: Path, layers: LayerStore, captures: CaptureStore) -> None:
        self._folder, self._layers, self._captures = folder, layers, captures
        self._records: dict[SnapshotId, SnapshotRecord] = {}
        self._coming: set[tuple[InstanceId, str]] = set()
        """Names of snapshots that are being made, by source."""
        self._disks = Verifier((Part.DISK,), self._checksums_file, self._look_at_disk)

    async def run(self) -> None:
        """Have checksums be made of the disks, until cancelled."""
        await self._disks.run()

    def load(self) -> None:
        """Read what is there and hold what it needs. Before anything is swept.

        One that has lost its disk or its memory is kept, to be seen and deleted.

        Raises:
            SnapshotUnreadable: one of the files is damaged, so that what it holds cannot be told.
        """
        found, checksums = [], list(self._folder.glob(f"*{_DISK_SUFFIX}"))
        for file in set(self._folder.glob(f"*{_SUFFIX}")).difference(checksums):
            try:
                found.append(SnapshotRecord.from_json(file.read_text()))
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                raise SnapshotUnreadable(
                    f"{file} cannot be read: {error}",
                    remedy=f"repair it, or move it out of {self._folder} to give the snapshot up",
                ) from error
        for part in self._folder.glob(f"*{PART_SUFFIX}"):
            part.unlink()
        for record in sorted(found, key=lambda record: record.created_at):
            self._hold(record)
            self._records[record.id] = record
        for file in checksums:
            if file.name.removesuffix(_DISK_SUFFIX) not in self._records:
                file.unlink()
        self._disks.find(self._records)

    def list(
        self,
        *,
        source: str | None = None,
        kind: SnapshotKind | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[SnapshotRecord]:
        """Return the snapshots that are all of what is not None, oldest first. `source`: an id or a name."""
        wanted = (tags or {}).items()
        return [
            record
            for record in self._records.values()
            if source in (None, record.source, record.source_name)
            and kind in (None, record.kind)
            and name in (None, record.name)
            and wanted <= record.tags.items()
        ]

    def get(self, ref: str) -> SnapshotRecord:
        """Return the snapshot with this id, name or unique beginning of an id.

        Raises:
            SnapshotNotFound, SnapshotAmbiguous
        """
        if ref in self._records:
            return self._records[SnapshotId(ref)]
        named = [record for record in self._records.values() if record.name == ref]
        found = named or [record for key, record in self._records.items() if ref and key.startswith(ref)]
        if len(found) > 1:
            raise SnapshotAmbiguous(
                f"{len(found)} snapshots are called {ref!r}, or begin with it", remedy="use the id"
            )
        if not found:
            raise SnapshotNotFound(f"there is no snapshot {ref!r}", remedy="ramet snapshot ls")
        return found[0]

    def reserve(self, source: InstanceId, name: str) -> None:
        """Take a name for a snapshot that is being made, until `give_back`.

        Raises:
            SnapshotNameTaken
        """
        taken = (source, name) in self._coming or self.list(source=source, name=name)
        if taken:
            raise SnapshotNameTaken(
                f"the instance has a snapshot called {name}",
                remedy="choose another name or delete it",
                name=name,
            )
        self._coming.add((source, name))

    def give_back(self, source: InstanceId, name: str) -> None:
        """Take a name no more: its snapshot is there, or will not be."""
        self._coming.discard((source, name))

    def add(self, record: SnapshotRecord) -> None:
        """Write a snapshot down and hold what it needs, which is there. Durable when this returns.

        Raises:
            SnapshotUnwritable: the disk is full; nothing is held.
        """
        try:
            self._layers.pin(record.point.layer)
            if record.point.capture is not None:
                self._captures.hold(record.point.capture, _holder(record))
            write_whole(self._file(record), record.to_json().encode())
        except BaseException as error:
            self._let_go(record)
            with suppress(OSError):
                self._file(record).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _unwritable(record, "written", error) from error
            raise
        self._records[record.id] = record
        self._disks.note(record.id)

    def replace(self, record: SnapshotRecord) -> None:
        """Write a snapshot down that has changed in nothing it needs. Durable when this returns.

        Raises:
            SnapshotNotFound
            SnapshotUnwritable: the disk is full; nothing was changed.
        """
        self.get(record.id)
        try:
            write_whole(self._file(record), record.to_json().encode())
        except OSError as error:
            raise _unwritable(record, "written", error) from error
        self._records[record.id] = record

    def delete(self, snapshot: SnapshotId) -> None:
        """Remove a snapshot; what only it needed goes with it. Instances that came from it need it no more.

        Raises:
            SnapshotNotFound
            SnapshotUnwritable: the disk refuses; it is still there.
        """
        record = self.get(snapshot)
        try:
            self._file(record).unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise _unwritable(record, "removed", error) from error
        del self._records[record.id]
        self._disks.forget(record.id)
        with suppress(OSError):  # The next load finds them.
            (self._folder / f"{record.id}{_DISK_SUFFIX}").unlink(missing_ok=True)
        self._let_go(record)

    async def verify_disk(self, snapshot: SnapshotId) -> tuple[CheckedPart, ...]:
        """Look whether the disk of a snapshot, which is pinned, is what it was when its checksums were made.

        Raises:
            SnapshotNotFound
            LayerBroken: it cannot be looked at.
        """
        layer = self.get(snapshot).point.layer
        try:
            return await self._disks.verify(snapshot)
        except OSError as error:
            raise LayerBroken(f"the disk {layer} cannot be looked at: {error}", layer=layer) from error

    def _hold(self, record: SnapshotRecord) -> None:
        try:
            self._layers.pin(record.point.layer)
            if record.point.capture is not None:
                self._captures.hold(record.point.capture, _holder(record))
        except (LayerBroken, CaptureBroken) as error:
            log.warning("snapshot_has_lost_a_part", snapshot=record.id, error=str(error))

    def _let_go(self, record: SnapshotRecord) -> None:
        if record.point.capture is not None:
            self._captures.release(record.point.capture, _holder(record))
        self._layers.unpin(record.point.layer)

    async def _look_at_disk(self, snapshot: SnapshotId) -> Sequence[Found]:
        """Read the disk of a snapshot that is there.

        Raises:
            OSError: it could not.
        """
        layer = self._records[snapshot].point.layer
        try:
            chain = self._layers.chain(layer)
        except LayerBroken as error:
            return [Found(Part.DISK, self._layers.path(layer).name, 0, (), str(error))]
        return await look_at_disk_apart(file for file, _ in chain)

    def _checksums_file(self, snapshot: SnapshotId) -> Path | None:
        """Return where the checksums of a snapshot's disk belong; None: it was deleted."""
        return self._folder / f"{snapshot}{_DISK_SUFFIX}" if snapshot in self._records else None

    def _file(self, record: SnapshotRecord) -> Path:
        return self._folder / f"{record.id}{_SUFFIX}"


def _holder(record: SnapshotRecord) -> str:
    return f"snapshot {record.id}"


def _unwritable(record: SnapshotRecord, done: str, error: OSError) -> SnapshotUnwritable:
    return SnapshotUnwritable(
        f"the snapshot of instance {record.source_name} cannot be {done}: {error.strerror}",
        remedy="see that the file system of the data folder has space and can be written",
    )
