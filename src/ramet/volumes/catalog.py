"""The volumes of a data folder: a folder for each, and a volume exists when its manifest does.

```
volumes/<id>/volume.json     a VolumeRecord
volumes/<id>/data.raw        its file system, sparse
```

A folder without a manifest is of a volume that was being made or removed, and is swept at the next start.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import structlog

from ramet.core.ids import VolumeId
from ramet.core.volumes import VolumeMount, VolumeRecord
from ramet.store.paths import sync_folder, write_whole
from ramet.volumes.attachments import Attachments
from ramet.volumes.errors import (
    VolumeAmbiguous,
    VolumeBroken,
    VolumeNameTaken,
    VolumeNotFound,
    VolumeUnclean,
    VolumeUnwritable,
)
from ramet.volumes.filesystem import is_clean

DATA_FILE: Final = "data.raw"
MANIFEST_FILE: Final = "volume.json"

log = structlog.get_logger(__name__)


class VolumeCatalog:
    """All volumes, and who has them. For the event loop's thread, but for `remove_files`.

    Attributes:
        attachments: who has which.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: dict[VolumeId, VolumeRecord] = {}
        self._taken: set[str] = set()
        """Names and ids of volumes that are being made, and ids of those whose files are not gone yet."""
        self._left: set[str] = set()
        """Ids of those whose files could not be removed: the next start tries again."""
        self.attachments = Attachments(self._records.keys())

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the volumes of `folder`; what was never made whole is removed.

        Raises:
            VolumeBroken: a manifest is damaged, so that nobody can tell whether its folder is a volume.
        """
        catalog, found = cls(folder), []
        for folder in catalog._folder.iterdir():
            manifest = folder / MANIFEST_FILE
            try:
                record = VolumeRecord.from_json(manifest.read_text())
            except (FileNotFoundError, NotADirectoryError):
                log.info("half_made_volume_removed", folder=folder.name)
                catalog.remove_files(VolumeId(folder.name))
                continue
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                raise VolumeBroken(
                    f"{manifest} cannot be read: {error}",
                    remedy=f"repair it, or move {folder} away to give the volume up",
                ) from error
            if record.id != folder.name:
                raise VolumeBroken(
                    f"{manifest} is of another volume, {record.id}",
                    remedy=f"move {folder} out of the data folder",
                )
            found.append(record)
        for record in sorted(found, key=lambda record: record.created_at):
            catalog._records[record.id] = record
        return catalog

    def list(self, tags: Mapping[str, str] | None = None) -> list[VolumeRecord]:
        """Return the volumes that have all of `tags`, oldest first."""
        wanted = (tags or {}).items()
        return [record for record in self._records.values() if wanted <= record.tags.items()]

    def get(self, ref: str) -> VolumeRecord:
        """Return the volume with this id, name or unique beginning of an id.

        Raises:
            VolumeNotFound, VolumeAmbiguous
        """
        if ref in self._records:
            return self._records[VolumeId(ref)]
        for record in self._records.values():
            if record.name == ref:
                return record
        found = [record for key, record in self._records.items() if ref and key.startswith(ref)]
        if len(found) > 1:
            raise VolumeAmbiguous(f"{len(found)} volumes' ids begin with {ref!r}")
        if not found:
            raise VolumeNotFound(f"there is no volume {ref!r}")
        return found[0]

    def disk_of(self, mount: VolumeMount) -> Path:
        """Return the file of a volume that is about to be mounted like that.

        Raises:
            VolumeNotFound: it was removed.
            VolumeUnclean: it is to be read, and only who writes to it can play its journal back.
            VolumeBroken: it is damaged, or its file is missing.
        """
        record = self.get(mount.volume)
        file = self.folder_of(record.id) / DATA_FILE
        if not is_clean(file) and mount.is_read_only:
            raise VolumeUnclean(
                f"volume {record.name} was not taken off as it should be by who wrote to it last",
                remedy="start an instance that has it writable, and stop it",
                volume=record.id,
            )
        return file

    @contextmanager
    def coming(self, record: VolumeRecord) -> Iterator[Path]:
        """Make a volume inside, in the folder given; without `add`, nothing is left of it.

        Raises:
            VolumeNameTaken: there is one of that name or id, or about to be.
            VolumeUnwritable: the disk is full.
        """
        names = {record.name, record.id}
        if names & (self._taken | self._left) or any(
            names & {one.name, one.id} for one in self._records.values()
        ):
            raise VolumeNameTaken(
                f"there is a volume called {record.name}, or of the id {record.id}",
                remedy="choose another name, or delete that volume",
                name=record.name,
            )
        self._taken |= names
        folder = self.folder_of(record.id)
        try:
            try:
                folder.mkdir(mode=0o700)
            except OSError as error:
                raise VolumeUnwritable(f"{folder} cannot be made: {error.strerror}") from error
            try:
                yield folder
            finally:
                if record.id not in self._records and record.id not in self._left:
                    self.remove_files(record.id)
        finally:
            self._taken -= names

    def add(self, record: VolumeRecord) -> None:
        """Write down a volume that has its file. Durable when this returns.

        Raises:
            VolumeUnwritable: the disk is full.
        """
        folder = self.folder_of(record.id)
        try:
            write_whole(folder / MANIFEST_FILE, record.to_json().encode())
            sync_folder(self._folder)
        except OSError as error:
            raise VolumeUnwritable(f"{folder} cannot be written: {error.strerror}") from error
        self._records[record.id] = record

    def forget(self, volume: VolumeId) -> None:
        """Have a volume that nobody has be none any more; its files are still to be removed.

        Raises:
            VolumeNotFound
            VolumeInUse: somebody has it.
            VolumeUnwritable: the disk refuses; it is still there.
        """
        record = self.get(volume)
        self.attachments.demand_unused(record.id, record.name)
        folder = self.folder_of(record.id)
        try:
            (folder / MANIFEST_FILE).unlink(missing_ok=True)
            sync_folder(folder)
        except OSError as error:
            raise VolumeUnwritable(f"{folder} cannot be written: {error.strerror}") from error
        del self._records[record.id]
        self._taken.add(record.id)

    def remove_files(self, volume: VolumeId) -> bool:
        """Remove the files of a forgotten volume, and tell whether they are gone. Blocks.

        What cannot be removed the next start does.
        """
        folder = self.folder_of(volume)
        _remove(folder)
        is_gone = not os.path.lexists(folder)
        if not is_gone:
            self._left.add(volume)
        return is_gone

    def removed(self, volume: VolumeId) -> None:
        """Note that the files of a volume are gone, so that its id may be another's."""
        self._taken.discard(volume)

    def folder_of(self, volume: VolumeId) -> Path:
        """Return the folder of a volume, which need not exist."""
        return self._folder / volume


def _remove(folder: Path) -> None:
    """Remove a folder, or a file in its place. Never fails: what is left is swept at the next start."""
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
    except OSError as error:
        log.warning("volume_not_removed", folder=str(folder), error=str(error))
