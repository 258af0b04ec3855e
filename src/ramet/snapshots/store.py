"""Captures that are stored: what sleeping instances and named snapshots wake from.

```
captures/<id>/manifest.json      written last: without it there is no capture
              ramet-memory       the guest's memory, sparse; or compressed, see `compressor`
              changes            pages that differ from that file, where it is of an earlier instant
              devices            the state of its devices
              checksums.json     of both, made later: see `verifier`
captures/<id>.gone/              given up, to be deleted
```

A stored capture never changes. Whoever may wake from it *holds* it by a name of his own; with the last
holder it goes. VMMs that were started from it keep what they map. A memory file may have several names, one
in each capture that stands on it: the file system counts them. Who holds what is not written down here:
records say it, and a starting daemon asks them.
"""

import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ramet.core.compression import Compression
from ramet.core.errors import Broken
from ramet.core.ids import CaptureId
from ramet.core.verification import CheckedPart
from ramet.linux.filled_once import FilledOnce
from ramet.linux.stored_file import StoredFile
from ramet.snapshots.compressor import Compressor, UnpackingFailed
from ramet.snapshots.manifest import DEVICES_FILE, MANIFEST_FILE, PACKED_FILE, Manifest, Wanted
from ramet.snapshots.verifier import capture_verifier
from ramet.snapshots.whole_memory import CHANGES_FILE
from ramet.store.paths import sync_folder, write_whole
from ramet.vmm.port import MEMORY_FILE_NAME, Capture

DELETE_RETRY_S: Final = 5.0
"""How soon a file that could not be deleted is tried again."""
_GONE_SUFFIX: Final = ".gone"
_ROOM_REMEDY: Final = "see that the file system of the data folder has space and can be written"

log = structlog.get_logger(__name__)


class CaptureBroken(Broken):
    """A stored capture is missing, damaged, or cannot be written."""

    code = "capture_broken"


class Draft:
    """A capture that is being stored: an empty `capture` to be filled, and then committed."""

    def __init__(self, id: CaptureId, folder: Path, capture: Capture) -> None:
        self.id, self.folder, self.capture = id, folder, capture
        self.manifest: Manifest | None = None
        self._compression: tuple[Compression, float] | None = None

    def compress_later(self, how: Compression, delay_s: float) -> None:
        """Have its memory be compressed, `delay_s` after it is a capture."""
        self._compression = how, delay_s

    async def write_out(self) -> None:
        """Have what it holds so far be on the disk, so that `commit` has less to do.

        Raises:
            CaptureBroken: the disk is full, or failing.
        """
        try:
            await self._sync()
        except OSError as error:
            raise _unwritable(error) from error

    def write(self, file: FilledOnce, offset: int, data: bytes) -> None:
        """Write to the capture's memory or its devices; may be called in a thread.

        Raises:
            CaptureBroken: the disk is full, or failing.
        """
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(file.fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _unwritable(error) from error

    async def commit(self) -> None:
        """Make it durable; from here on it is a capture. Cancelled, it may not be one.

        Raises:
            CaptureBroken: the disk is full, or failing.
        """
        try:
            await self._sync()
            with anyio.CancelScope(shield=True):
                self.manifest = await to_thread.run_sync(self._write_manifest)
        except OSError as error:
            raise _unwritable(error) from error

    async def _sync(self) -> None:
        # Cancelled, this leaves a thread behind that syncs what is deleted by then, by its own descriptor.
        files = (self.capture.memory, self.capture.devices, self.capture.base)
        fds = [os.dup(file.fd) for file in files if file is not None]
        try:
            await to_thread.run_sync(_sync_all, fds, abandon_on_cancel=True)
        finally:
            _close_all(fds)

    def _write_manifest(self) -> Manifest:
        capture = self.capture
        assert capture.format is not None, "it was filled"
        capture.seal()
        memory, now, wanted = capture.memory, time.time(), None
        resident_bytes = memory.resident_bytes
        if capture.changes is not None:
            resident_bytes += capture.mapped.resident_bytes
        elif capture.base is not None:  # Too much has changed: it is a whole.
            (self.folder / CHANGES_FILE).rename(self.folder / MEMORY_FILE_NAME)
        if self._compression is not None:
            how, delay_s = self._compression
            wanted = Wanted(how, now + delay_s)
        manifest = Manifest(
            self.id,
            capture.format,
            memory.size_bytes,
            resident_bytes,
            now,
            wanted=wanted,
            changes=capture.changes,
        )
        write_whole(self.folder / MANIFEST_FILE, manifest.to_bytes())
        sync_folder(self.folder.parent)
        return manifest


class CaptureStore:
    """The folder of stored captures. For the event loop's thread; deletes in one of its own, by `run`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.compressor = Compressor(folder)
        self.verifier = capture_verifier(folder)
        self._holders: defaultdict[CaptureId, set[str]] = defaultdict(set)
        self._held_by: defaultdict[str, set[CaptureId]] = defaultdict(set)
        self._given_up = anyio.Event()
        self._not_given_up: set[Path] = set()

    async def run(self) -> None:
        """Delete what is given up, compress what is to be and make checksums of the rest, until cancelled.

        What a cancelled one leaves, the next finds.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._delete_given_up)
            group.start_soon(self.compressor.run)
            group.start_soon(self.verifier.run)

    async def _delete_given_up(self) -> None:
        while True:
            self._given_up = anyio.Event()
            is_done = await to_thread.run_sync(self._delete_gone)
            for folder in tuple(self._not_given_up):
                self._give_up(folder)
            is_done = is_done and not self._not_given_up
            with anyio.move_on_after(math.inf if is_done else DELETE_RETRY_S):
                await self._given_up.wait()

    @contextmanager
    def draft(
        self, capture_id: CaptureId, memory_bytes: int, holder: str, base: Path | None = None
    ) -> Iterator[Draft]:
        """Make a capture inside, for a guest of `memory_bytes`, held by `holder`. Uncommitted, it is dropped.

        Args:
            base: the memory of the guest at an earlier instant; only what differs from it need be stored.

        Raises:
            CaptureBroken: the disk is full, or failing.
        """
        folder = self._folder / capture_id
        self._note(capture_id, holder)
        try:
            capture = _create_files(folder, memory_bytes, base)
        except OSError as error:
            self.release(capture_id, holder)
            raise _unwritable(error) from error
        draft = Draft(capture_id, folder, capture)
        try:
            yield draft
        finally:
            capture.close()
            if draft.manifest is None:
                self.release(capture_id, holder)
            elif capture_id in self._holders:
                self.compressor.note(draft.manifest)
                self.verifier.note(capture_id)

    def hold(self, capture: CaptureId, holder: str) -> None:
        """Hold a capture by the name `holder`. Idempotent.

        Raises:
            CaptureBroken: it is not there.
        """
        if not (self._folder / capture / MANIFEST_FILE).exists():
            raise CaptureBroken(f"the stored memory {capture} is gone", capture=capture)
        self._note(capture, holder)

    def release(self, capture: CaptureId, holder: str) -> None:
        """Hold it no more; with the last holder it goes. Idempotent."""
        if capture not in self._held_by.get(holder, ()):
            return
        self._held_by[holder].remove(capture)
        if not self._held_by[holder]:
            del self._held_by[holder]
        self._holders[capture].remove(holder)
        if not self._holders[capture]:
            del self._holders[capture]
            self._give_up(self._folder / capture)

    def hold_only(self, capture: CaptureId | None, holder: str) -> None:
        """Have `holder` hold `capture`, if it is there, and no other."""
        if capture is not None:
            with suppress(CaptureBroken):  # What has lost its memory has a record that names it still.
                self.hold(capture, holder)
        for other in tuple(self._held_by.get(holder, ())):
            if other != capture:
                self.release(other, holder)

    def manifest(self, capture: CaptureId) -> Manifest:
        """Return what a capture is.

        Raises:
            CaptureBroken: it is missing or damaged.
        """
        file = self._folder / capture / MANIFEST_FILE
        try:
            return Manifest.from_bytes(file.read_bytes())
        except FileNotFoundError as error:
            raise CaptureBroken(f"the stored memory {capture} is gone", capture=capture) from error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CaptureBroken(f"{file} cannot be read: {error}", capture=capture) from error

    def link_memory(self, capture: CaptureId, name: Path) -> bool:
        """Give the memory file of an opened capture another name, so that it outlives the capture.

        Tells whether it could: a file has so many names, and those on one file system.
        """
        try:
            return self.compressor.link_raw(capture, name)
        except OSError as error:
            log.info("memory_not_linked", capture=capture, error=str(error))
            return False

    def compress(self, capture: CaptureId, how: Compression) -> None:
        """Have the memory of a capture be compressed, unless it is. Durable.

        Raises:
            CaptureBroken: it is missing or damaged, or the disk refuses.
        """
        try:
            self.compressor.want(self.manifest(capture), how)
        except OSError as error:
            raise _unwritable(error) from error

    @asynccontextmanager
    async def opened(self, capture: CaptureId, *, may_be_packed: bool = False) -> AsyncIterator[Capture]:
        """Open a capture, to start VMMs from it inside. Compressed memory is decompressed first.

        Args:
            may_be_packed: memory that lies packed is left so.

        Raises:
            CaptureBroken: it is missing or damaged.
        """
        manifest = self.manifest(capture)
        self.verifier.put_off(capture)
        look = self.compressor.raw_or_packed if may_be_packed else self.compressor.raw
        async with AsyncExitStack() as stack:
            try:
                memory = await stack.enter_async_context(look(manifest))
            except UnpackingFailed as error:
                raise CaptureBroken(f"the stored memory {capture} {error}", capture=capture) from error
            opened = self._open(manifest, memory)
            stack.callback(opened.close)
            yield opened

    async def verify(self, capture: CaptureId) -> tuple[CheckedPart, ...]:
        """Look whether a capture, which is held, is what was stored.

        Raises:
            CaptureBroken: it cannot be looked at.
        """
        try:
            with self.compressor.left_alone(capture):
                return await self.verifier.verify(capture)
        except OSError as error:
            raise CaptureBroken(f"the stored memory {capture} cannot be looked at: {error}") from error

    def _open(self, manifest: Manifest, memory_file: Path) -> Capture:
        capture = manifest.id
        try:
            memory = StoredFile.open(memory_file)
        except OSError as error:
            raise _unreadable(capture, error) from error
        try:
            devices = StoredFile.open(self._folder / capture / DEVICES_FILE)
        except OSError as error:
            memory.close()
            raise _unreadable(capture, error) from error
        is_packed = memory_file.name == PACKED_FILE
        opened = Capture(memory, devices, manifest.format, is_packed=is_packed)
        if is_packed:
            return opened
        if manifest.changes is not None and memory_file.parent.name == capture:
            try:
                opened.memory = StoredFile.open(memory_file.with_name(CHANGES_FILE))
            except OSError as error:
                opened.close()
                raise _unreadable(capture, error) from error
            opened.base, opened.changes = memory, manifest.changes
        if {opened.memory.size_bytes, opened.mapped.size_bytes} != {manifest.memory_bytes}:
            opened.close()
            raise CaptureBroken(f"the stored memory {capture} is cut off", capture=capture)
        return opened

    def sweep(self) -> list[CaptureId]:
        """Give up what nobody holds, such as a crash left it; returns what that was. Before `run`."""
        unheld = [CaptureId(path.name) for path in self._folder.iterdir() if path.suffix != _GONE_SUFFIX]
        unheld = [capture for capture in unheld if capture not in self._holders]
        for capture in unheld:
            self._give_up(self._folder / capture)
        self.compressor.find(self._holders)
        self.verifier.find(self._holders)
        self._given_up.set()  # There may be some of an earlier daemon.
        return unheld

    def statistics(self) -> dict[str, int]:
        """Return counts: captures that are `held`."""
        return {"held": len(self._holders)}

    def _note(self, capture: CaptureId, holder: str) -> None:
        self._holders[capture].add(holder)
        self._held_by[holder].add(capture)

    def _give_up(self, folder: Path) -> None:
        self.compressor.forget(CaptureId(folder.name))
        self.verifier.forget(CaptureId(folder.name))
        try:
            folder.rename(folder.with_name(folder.name + _GONE_SUFFIX))
        except FileNotFoundError:
            pass  # It never came to be.
        except OSError as error:
            if folder not in self._not_given_up:
                log.warning("capture_not_given_up", capture=folder.name, error=str(error))
                self._not_given_up.add(folder)
                self._given_up.set()
            return
        self._not_given_up.discard(folder)
        self._given_up.set()

    def _delete_gone(self) -> bool:
        """Delete what is given up; tells whether all of it could be."""
        is_done = True
        for folder in self._folder.glob(f"*{_GONE_SUFFIX}"):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                log.warning("capture_not_deleted", folder=folder.name, error=str(error))
                is_done = False
        return is_done


def _create_files(folder: Path, memory_bytes: int, base: Path | None) -> Capture:
    folder.mkdir(mode=0o700)
    with ExitStack() as stack:
        below = None
        if base is not None and _is_linked(base, folder / MEMORY_FILE_NAME):
            below = StoredFile.open(folder / MEMORY_FILE_NAME)
            stack.callback(below.close)
        name = MEMORY_FILE_NAME if below is None else CHANGES_FILE
        memory = StoredFile.create(folder / name, memory_bytes)
        stack.callback(memory.close)
        devices = StoredFile.create(folder / DEVICES_FILE)
        stack.pop_all()
    return Capture(memory, devices, base=below)


def _is_linked(base: Path, name: Path) -> bool:
    """Give a file another name, if it may have one more; without, all is stored."""
    try:
        os.link(base, name)
    except OSError as error:
        log.info("base_not_linked", base=str(base), error=str(error))
        return False
    return True


def _sync_all(fds: list[int]) -> None:
    """Sync and close descriptors, each taken out of `fds` first: what is in there is still to be closed."""
    while fds:
        fd = fds.pop()
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _unwritable(error: OSError) -> CaptureBroken:
    return CaptureBroken(f"memory cannot be stored: {error.strerror}", remedy=_ROOM_REMEDY)


def _unreadable(capture: CaptureId, error: OSError) -> CaptureBroken:
    return CaptureBroken(f"the stored memory {capture} cannot be read: {error.strerror}", capture=capture)
