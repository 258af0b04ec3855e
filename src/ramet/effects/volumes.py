"""Volumes: made, filled, removed, and given to instances and taken back.

A volume is made beside everything else, in a thread, and is one when its manifest is written. Giving one to
an instance is bookkeeping: a guest mounts at its next boot what its spec says then.
"""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
from anyio import to_thread

from ramet.admission.demand import Demand
from ramet.core.ids import InstanceId, VolumeId, mint_id
from ramet.core.units import format_size
from ramet.core.volumes import VolumeMount, VolumeRecord
from ramet.effects.site import Site
from ramet.images.offload import run_stoppable
from ramet.volumes.archive import unpack
from ramet.volumes.catalog import DATA_FILE
from ramet.volumes.errors import ArchiveTooLarge, VolumeQuotaReached, VolumeUnwritable
from ramet.volumes.filesystem import make_file_system

_ARCHIVE_FILE: Final = "archive"
_TREE_FOLDER: Final = "tree"

Done = TypeVar("Done")


class SiteVolumes:
    """The volumes of a site. `ref` is a volume's id, its name or a unique beginning of its id.

    Args:
        storage_bytes_max: how large all are together at most; None: no end.
    """

    def __init__(self, site: Site, *, storage_bytes_max: int | None = None) -> None:
        self._site, self._catalog = site, site.volumes
        self._storage_bytes_max = storage_bytes_max
        self._coming_bytes = 0
        for record in self._catalog.list():
            site.admission.ledger.note(_owner(record.id), _demand(record))

    def list(self, tags: Mapping[str, str] | None = None) -> list[VolumeRecord]:
        """Return the volumes that have all of `tags`, oldest first."""
        return self._catalog.list(tags)

    def get(self, ref: str) -> VolumeRecord:
        """Return one volume.

        Raises:
            VolumeNotFound, VolumeAmbiguous: as they say; so does every other method with a `ref`.
        """
        return self._catalog.get(ref)

    def attachments(self, volume: VolumeId) -> Mapping[InstanceId, VolumeMount]:
        """Return the instances that have a volume, and how."""
        return self._catalog.attachments.of(volume)

    async def create(
        self,
        name: str,
        size_bytes: int,
        tags: Mapping[str, str],
        volume: str | None = None,
        archive: AsyncIterator[bytes] | None = None,
    ) -> VolumeRecord:
        """Make a volume, empty or with the content of `archive`, a tar stream; durable when this returns.

        Args:
            volume: its id, a name in form; None: one is minted.

        Raises:
            VolumeNameTaken: there is one of that name or id.
            InsufficientResources: there is no room for all that it may come to hold.
            VolumeQuotaReached: all volumes together would be larger than they may be.
            ArchiveInvalid, ArchiveTooLarge: it cannot be filled from that.
            VolumeUnwritable: the disk is full; nothing is left of it.
        """
        record = VolumeRecord(VolumeId(volume or mint_id()), name, size_bytes, time.time(), dict(tags))
        with self._catalog.coming(record) as folder, self._within_quota(record):
            ledger = self._site.admission.ledger
            ledger.admit(_owner(record.id), _demand(record), f"volume {name}")
            try:
                if archive is None:
                    await to_thread.run_sync(make_file_system, folder / DATA_FILE, size_bytes)
                else:
                    await _receive(archive, folder / _ARCHIVE_FILE, size_bytes)
                    await run_stoppable(lambda check: _fill(folder, size_bytes, check))
                self._catalog.add(record)
            except BaseException:
                await self._remove_files(record.id)
                raise
        return record

    @contextmanager
    def _within_quota(self, record: VolumeRecord) -> Iterator[None]:
        """Have a volume count that is being made, or refuse it."""
        used_bytes = sum(one.size_bytes for one in self._catalog.list()) + self._coming_bytes
        most = self._storage_bytes_max
        if most is not None and used_bytes + record.size_bytes > most:
            raise VolumeQuotaReached(
                f"volume {record.name} would have {format_size(record.size_bytes)}, and of the"
                f" {format_size(most)} for all volumes {format_size(max(0, most - used_bytes))} are left",
                limit_bytes=most,
                used_bytes=used_bytes,
            )
        self._coming_bytes += record.size_bytes
        try:
            yield
        finally:
            self._coming_bytes -= record.size_bytes

    async def delete(self, ref: str) -> None:
        """Remove a volume with all that is in it; returns when its room is free, and counted so.

        Of what the disk refuses to remove, the room stays taken until the next start has removed it.

        Raises:
            VolumeInUse: an instance, or a snapshot with memory, has it.
            VolumeUnwritable: the disk refuses; it is still there.
        """
        record = self._catalog.get(ref)
        self._catalog.forget(record.id)
        await self._remove_files(record.id)

    async def _remove_files(self, volume: VolumeId) -> None:
        """Remove the files of a volume that is none; that they are gone is noted, whoever waits or leaves."""
        loop = asyncio.get_running_loop()

        def remove() -> None:
            if self._catalog.remove_files(volume):
                with suppress(RuntimeError):  # The daemon has left.
                    loop.call_soon_threadsafe(self._note_gone, volume)

        with anyio.CancelScope(shield=True):  # An archive takes its time to go.
            await to_thread.run_sync(remove)

    def _note_gone(self, volume: VolumeId) -> None:
        self._site.admission.ledger.release(_owner(volume))
        self._catalog.removed(volume)


async def _receive(chunks: AsyncIterator[bytes], file: Path, size_bytes: int) -> None:
    """Write an archive down as it comes.

    Raises:
        ArchiveTooLarge: it is larger than what it is to be unpacked to.
        VolumeUnwritable: the disk is full.
        RametError: whoever sends it went away.
    """
    received_bytes = 0
    archive = _on_disk(lambda: file.open("xb"))
    try:
        async for chunk in chunks:
            received_bytes += len(chunk)
            if received_bytes > size_bytes:
                raise ArchiveTooLarge(f"the archive is larger than the volume, of {size_bytes} bytes")
            await to_thread.run_sync(_on_disk, partial(archive.write, chunk))
        await to_thread.run_sync(_on_disk, archive.flush)
    finally:
        with suppress(OSError):  # Of what could not be written, which was told.
            archive.close()


def _on_disk(work: Callable[[], Done]) -> Done:
    """Do something to a file.

    Raises:
        VolumeUnwritable: it failed.
    """
    try:
        return work()
    except OSError as error:
        raise VolumeUnwritable(f"the archive cannot be written down: {error.strerror}") from error


def _fill(folder: Path, size_bytes: int, check: Callable[[], None]) -> None:
    """Make the file system of the archive in `folder`; nothing else is left there."""
    archive, tree = folder / _ARCHIVE_FILE, folder / _TREE_FOLDER
    try:
        tree.mkdir(mode=0o755)  # Of the folder around it only we may enter.
        os.chmod(tree, 0o755)
        entry_count = unpack(archive, tree, size_bytes, check)
        check()
        make_file_system(folder / DATA_FILE, size_bytes, tree, entry_count)
    except OSError as error:
        raise VolumeUnwritable(f"the volume cannot be made: {error.strerror}") from error
    finally:
        # What is left, of a full disk say, goes with the folder: this one at the next start.
        shutil.rmtree(tree, ignore_errors=True)
        archive.unlink(missing_ok=True)


def _owner(volume: VolumeId) -> str:
    return f"volume {volume}"


def _demand(record: VolumeRecord) -> Demand:
    return Demand(disk_bytes=record.size_bytes)
