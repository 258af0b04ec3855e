"""Which stored memory is compressed, and when; and how it becomes memory again.

```
captures/<id>/ramet-memory, changes      the memory, as it was stored; it wins over all others
              memory.packed.part         being compressed
              memory.packed              compressed; it counts once the manifest tells of it
              unpacked/ramet-memory      made of it again, by this daemon: not durable, and gone with it
              ramet-memory.gone          to be deleted
```

One at a time is compressed, in the background. Whoever needs the memory waits for none of it: he ends the
compression and takes what is there. A daemon that is killed anywhere leaves memory, compressed or not, and a
manifest that says what was wanted of it; the next begins again.
"""

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ramet.core.compression import Compression, MemoryState
from ramet.core.ids import CaptureId
from ramet.linux.pagemap import PageRuns
from ramet.snapshots.backlog import Backlog
from ramet.snapshots.compression import Compressed, MemoryDamaged, decompress
from ramet.snapshots.manifest import (
    MANIFEST_FILE,
    PACKED_FILE,
    UNPACKED_FOLDER,
    Manifest,
    Wanted,
)
from ramet.snapshots.whole_memory import CHANGES_FILE
from ramet.store.paths import PART_SUFFIX, sync_folder, write_whole
from ramet.vmm.port import MEMORY_FILE_NAME

REST_S: Final = 60.0
"""How long memory that somebody has used is left as it is."""
_GONE_FILE: Final = f"{MEMORY_FILE_NAME}.gone"
_READ_ONLY: Final = 0o400

log = structlog.get_logger(__name__)


class UnpackingFailed(Exception):
    """The memory of a capture is gone or damaged, or there is no room for it; the text ends a sentence."""


class _Unpacking:
    """Memory that is being decompressed for all who wait for it."""

    def __init__(self) -> None:
        self.has_ended = anyio.Event()
        self.failure = ""


class Compressor:
    """Compresses the stored memory of a folder of captures, and unpacks it. For the event loop's thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._backlog = Backlog[CaptureId]()
        self._states: dict[CaptureId, MemoryState] = {}
        self._uses: Counter[CaptureId] = Counter()
        self._unpacking: dict[CaptureId, _Unpacking] = {}

    async def run(self) -> None:
        """Compress what is due, until cancelled."""
        await self._backlog.run(self._see_to)

    def state(self, capture: CaptureId) -> MemoryState:
        """Return how the memory of a capture lies on the disk."""
        return self._states.get(capture, MemoryState())

    def note(self, manifest: Manifest) -> None:
        """Have a new or a found capture be compressed when its manifest says so."""
        if manifest.compressed is not None:
            self._note_compressed(manifest.id, manifest.compressed)
            self._backlog.see_at(manifest.id, time.monotonic())
        elif manifest.wanted is not None:
            self._states[manifest.id] = MemoryState("compressing", manifest.wanted.how)
            self._backlog.see_at(manifest.id, time.monotonic() + manifest.wanted.not_before - time.time())

    def want(self, manifest: Manifest, how: Compression) -> None:
        """Have a capture that is there be compressed at once, unless it is or is just being. Durable.

        Raises:
            OSError: the disk refuses; nothing was changed.
        """
        if manifest.compressed is None and self._backlog.current != manifest.id:
            manifest = replace(manifest, wanted=Wanted(how, time.time()))
            self._write(manifest)
            self.note(manifest)

    def find(self, captures: Iterable[CaptureId]) -> None:
        """Take up what an earlier daemon has left, before anybody needs it.

        What it had unpacked may be as a power cut left it: it is deleted.

        Raises:
            OSError: it cannot be.
        """
        for capture in captures:
            folder = self._folder / capture
            with suppress(FileNotFoundError):
                shutil.rmtree(folder / UNPACKED_FOLDER)
            with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                # One that is damaged is told to whoever needs it.
                self.note(Manifest.from_bytes((folder / MANIFEST_FILE).read_bytes()))

    def forget(self, capture: CaptureId) -> None:
        """Have nothing to do with a capture any more: it is about to be deleted."""
        self._states.pop(capture, None)
        self._backlog.forget(capture)

    @asynccontextmanager
    async def raw(self, manifest: Manifest) -> AsyncIterator[Path]:
        """Have the memory of a capture as a file, inside; if it is just being compressed, that is ended.

        Raises:
            UnpackingFailed: on entering: there is none.
        """
        with self.left_alone(manifest.id):
            yield self._find_raw(manifest.id) or await self._unpack(manifest)

    @asynccontextmanager
    async def raw_or_packed(self, manifest: Manifest) -> AsyncIterator[Path]:
        """As `raw`, or where there is no raw memory, have the packed one if the pager can read it."""
        compressed = manifest.compressed
        with self.left_alone(manifest.id):
            found = self._find_raw(manifest.id)
            if found is None and compressed is not None and compressed.is_packed:
                found = self._folder / manifest.id / PACKED_FILE
            yield found or await self._unpack(manifest)

    @contextmanager
    def left_alone(self, capture: CaptureId) -> Iterator[None]:
        """Have the files of a capture stay, inside; if it is just being compressed, that is ended."""
        self._uses[capture] += 1
        self._backlog.interrupt(capture)
        try:
            yield
        finally:
            self._uses[capture] -= 1
            if not self._uses[capture]:
                del self._uses[capture]
                if capture in self._states:
                    due_at = self._backlog.due_at(capture) or 0.0
                    self._backlog.see_at(capture, max(time.monotonic() + REST_S, due_at))

    def link_raw(self, capture: CaptureId, name: Path) -> bool:
        """Give the memory of a capture that is left alone another name; tells whether there is any.

        Raises:
            OSError: the file system refuses.
        """
        raw = self._find_raw(capture)
        if raw is None:
            return False
        part = name.with_name(name.name + PART_SUFFIX)
        part.unlink(missing_ok=True)
        os.link(raw, part)
        part.rename(name)
        part.unlink(missing_ok=True)  # Left where both were names of one file.
        return True

    def _note_compressed(self, capture: CaptureId, compressed: Compressed) -> None:
        self._states[capture] = MemoryState("compressed", compressed.how, compressed.size_bytes)

    def _find_raw(self, capture: CaptureId) -> Path | None:
        folder = self._folder / capture
        for path in (folder / MEMORY_FILE_NAME, folder / UNPACKED_FOLDER / MEMORY_FILE_NAME):
            if path.exists():
                return path
        return None

    async def _see_to(self, capture: CaptureId) -> None:
        """Have a capture's memory be there compressed, and compressed alone. Cancelled, it is as it was."""
        folder = self._folder / capture
        try:
            manifest = Manifest.from_bytes((folder / MANIFEST_FILE).read_bytes())
            if manifest.compressed is None:
                if manifest.wanted is None or self._uses[capture]:
                    return
                manifest = await self._compress(manifest, manifest.wanted.how)
                await anyio.lowlevel.checkpoint_if_cancelled()
            assert manifest.compressed is not None, "it has been compressed"
            self._note_compressed(capture, manifest.compressed)
            if not self._uses[capture]:
                await self._delete_raw(folder)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            if capture in self._states:  # It is not being deleted.
                log.warning("memory_not_compressed", capture=capture, error=str(error))
                known = self._states[capture]
                if known.state != "compressed":
                    self._states[capture] = replace(known, state="error", error=_words(error))

    async def _compress(self, manifest: Manifest, how: Compression) -> Manifest:
        folder = self._folder / manifest.id
        part = folder / (PACKED_FILE + PART_SUFFIX)
        part.unlink(missing_ok=True)
        try:
            compressed = await _compress_apart(folder / MEMORY_FILE_NAME, part, how, manifest.changes)
            manifest = replace(manifest, compressed=compressed)
            await to_thread.run_sync(self._commit, manifest, part)
        finally:
            part.unlink(missing_ok=True)
        return manifest

    def _commit(self, manifest: Manifest, part: Path) -> None:
        part.rename(part.with_name(PACKED_FILE))
        sync_folder(part.parent)
        self._write(manifest)

    def _write(self, manifest: Manifest) -> None:
        write_whole(self._folder / manifest.id / MANIFEST_FILE, manifest.to_bytes())

    async def _delete_raw(self, folder: Path) -> None:
        """Delete the memory that is there compressed as well; from the first step on, nobody finds it."""
        gone = folder / _GONE_FILE
        for path in (folder / UNPACKED_FOLDER / MEMORY_FILE_NAME, folder / MEMORY_FILE_NAME):
            with suppress(FileNotFoundError):
                path.rename(gone)
        (folder / CHANGES_FILE).unlink(missing_ok=True)
        # Freeing much of a disk takes a while.
        await to_thread.run_sync(partial(gone.unlink, missing_ok=True))

    async def _unpack(self, manifest: Manifest) -> Path:
        """Decompress a capture's memory, or wait for who does; cancelled, he does it nevertheless."""
        if manifest.compressed is None:
            raise UnpackingFailed("is gone")
        capture = manifest.id
        unpacking = self._unpacking.get(capture)
        if unpacking is not None:
            await unpacking.has_ended.wait()
        else:
            unpacking = self._unpacking[capture] = _Unpacking()
            with anyio.CancelScope(shield=True):
                try:
                    await to_thread.run_sync(self._unpack_file, manifest)
                except (OSError, MemoryDamaged) as error:
                    unpacking.failure = _words(error)
                finally:
                    del self._unpacking[capture]
                    unpacking.has_ended.set()
        if unpacking.failure:
            raise UnpackingFailed(f"cannot be decompressed: {unpacking.failure}")
        return self._folder / capture / UNPACKED_FOLDER / MEMORY_FILE_NAME

    def _unpack_file(self, manifest: Manifest) -> None:
        assert manifest.compressed is not None, "otherwise nobody unpacks"
        folder = self._folder / manifest.id
        unpacked = folder / UNPACKED_FOLDER / MEMORY_FILE_NAME
        unpacked.parent.mkdir(mode=0o700, exist_ok=True)
        part = unpacked.with_name(MEMORY_FILE_NAME + PART_SUFFIX)
        decompress(folder / PACKED_FILE, part, manifest.compressed, manifest.memory_bytes)
        part.chmod(_READ_ONLY)
        part.rename(unpacked)


async def _compress_apart(
    raw: Path, packed: Path, how: Compression, changes: PageRuns | None = None
) -> Compressed:
    """Compress in a process of its own, which ends with us, or when this is cancelled.

    `changes` are of the file beside `raw`.

    Raises:
        OSError: it could not.
    """
    arguments = [str(raw), str(packed), how.algorithm.value, str(how.level), str(os.getpid())]
    command = [sys.executable, "-P", "-m", "ramet.snapshots.compression", *arguments]
    done = await anyio.run_process(command, check=False, input=json.dumps(changes).encode())
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise OSError(None, words.splitlines()[-1] if words else f"it ended with {done.returncode}")
    return Compressed.from_dict(json.loads(done.stdout))


def _words(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
