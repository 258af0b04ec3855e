"""Checksums of what is stored: one for each chunk of a file, so that what has changed can be named.

They are of the content, not of how it lies on the disk: a hole is zeros, compressed memory has the checksums
of the memory, and a disk has those of what its guest would read, whichever layers hold it. So they are made
once, of whichever form is there, and hold for all.

As a program it reads a stored capture or a disk at the lowest priority: `python -m ramet.snapshots.checksums
PARENT capture FOLDER`, `PARENT disk TOP ... BASE`. A process of its own for the reason that compressing has
one.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, Literal, Self

from ramet.core.verification import CHUNK_BYTES, Part
from ramet.disks.whole_disk import DiskReader
from ramet.linux.pagemap import PageRuns
from ramet.snapshots.compression import NICENESS, MemoryDamaged, end_with, unpacked
from ramet.snapshots.manifest import (
    DEVICES_FILE,
    MANIFEST_FILE,
    PACKED_FILE,
    UNPACKED_FOLDER,
    Manifest,
)
from ramet.snapshots.whole_memory import CHANGES_FILE, whole_runs
from ramet.vmm.port import MEMORY_FILE_NAME

CHECKSUMS_FILE: Final = "checksums.json"
SCHEMA: Final = 1
_ZEROS: Final = bytes(CHUNK_BYTES)

Sums = tuple[str | None, ...]
"""The SHA-256 of each chunk in order, in hex; None: it is nothing but zeros."""


@dataclass(frozen=True, slots=True)
class Checksums:
    """What something stored holds, by part."""

    of: Mapping[Part, Sums]

    def to_bytes(self) -> bytes:
        content: dict[str, object] = {"schema": SCHEMA, "chunk_bytes": CHUNK_BYTES}
        content |= {part.value: sums for part, sums in self.of.items()}
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, parts: Iterable[Part]) -> Self:
        """Read what `to_bytes` wrote of something that has such parts.

        Raises:
            ValueError, TypeError, KeyError: it was not.
        """
        raw = json.loads(data)
        if (raw["schema"], raw["chunk_bytes"]) != (SCHEMA, CHUNK_BYTES):
            raise ValueError(f"they are of another schema than {SCHEMA}")
        return cls({part: _sums(raw[part]) for part in parts})


@dataclass(frozen=True, slots=True)
class Found:
    """What a file was found to hold: `sums` of it, as far as it could be read, `size_bytes` read of it.

    `damage` says why it could not be read to its end, and is empty if it could.
    """

    part: Part
    file: str
    size_bytes: int
    sums: Sums
    damage: str = ""

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what `asdict` and JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: they did not.
        """
        return cls(Part(raw["part"]), raw["file"], raw["size_bytes"], _sums(raw["sums"]), raw["damage"])


def first_difference(found: Sums, expected: Sums) -> int | None:
    """Return the first chunk that is not as expected, or is missing or too many; None: there is none."""
    for index, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return index
    return None if len(found) == len(expected) else min(len(found), len(expected))


def look_at(folder: Path) -> list[Found]:
    """Read all files of a stored capture that a guest may be woken from. Blocks.

    Raises:
        OSError, ValueError, TypeError, KeyError: its manifest cannot be read.
    """
    with ExitStack() as stack:
        # Opened before the manifest is read: memory goes only after that tells of the compressed one.
        opened: list[tuple[str, FileIO]] = []
        changes: FileIO | None = None
        with suppress(FileNotFoundError):
            changes = stack.enter_context((folder / CHANGES_FILE).open("rb", buffering=0))
        for name in (MEMORY_FILE_NAME, f"{UNPACKED_FOLDER}/{MEMORY_FILE_NAME}"):
            with suppress(FileNotFoundError):
                opened.append((name, stack.enter_context((folder / name).open("rb", buffering=0))))
        manifest = Manifest.from_bytes((folder / MANIFEST_FILE).read_bytes())
        found = []
        for name, file in opened:
            if name == MEMORY_FILE_NAME:
                found.append(_look_at_file(Part.MEMORY, name, file, changes, manifest.changes))
            else:
                found.append(_look_at_file(Part.MEMORY, name, file))
        if manifest.compressed is not None:
            found.append(_look_at_packed(folder, manifest))
        elif not found:
            found.append(Found(Part.MEMORY, MEMORY_FILE_NAME, 0, (), "it is gone"))
        try:
            devices = stack.enter_context((folder / DEVICES_FILE).open("rb", buffering=0))
        except OSError as error:
            found.append(Found(Part.DEVICES, DEVICES_FILE, 0, (), _words(error)))
        else:
            found.append(_look_at_file(Part.DEVICES, DEVICES_FILE, devices))
    return found


def look_at_disk(files: Sequence[Path]) -> Found:
    """Read all that a disk which does not change holds; `files` are its layers, topmost first. Blocks.

    The last is the base, which is no qcow2.
    """
    chunks, damage = _Chunks(), ""
    try:
        chain: list[tuple[Path, Literal["raw", "qcow2"]]] = [(file, "qcow2") for file in files[:-1]]
        with closing(DiskReader([*chain, (files[-1], "raw")])) as disk:
            for run in disk.runs():
                chunks.add(run.offset, run.read(0, run.length_bytes))
            chunks.end_at(disk.size_bytes)
    except OSError as error:
        damage = _words(error)
    except ValueError as error:
        damage = str(error)
    return Found(Part.DISK, files[0].name, chunks.read_bytes, tuple(chunks.sums), damage)


def _look_at_file(
    part: Part, name: str, file: FileIO, over: FileIO | None = None, changes: PageRuns | None = None
) -> Found:
    chunks, damage = _Chunks(), ""
    try:
        if changes is not None and over is None:
            raise OSError(errno.ENOENT, "its changes are gone")
        for run in whole_runs(file.fileno(), None if over is None else over.fileno(), changes):
            for offset, data in run.pieces(CHUNK_BYTES):
                chunks.add(offset, data)
        chunks.end_at(os.fstat(file.fileno()).st_size)
    except OSError as error:
        damage = _words(error)
    return Found(part, name, chunks.read_bytes, tuple(chunks.sums), damage)


def _look_at_packed(folder: Path, manifest: Manifest) -> Found:
    assert manifest.compressed is not None, "it is there compressed"
    chunks, damage = _Chunks(), ""
    try:
        with (folder / PACKED_FILE).open("rb", buffering=0) as opened:
            for offset, data in unpacked(opened, manifest.compressed):
                chunks.add(offset, data)
            chunks.end_at(manifest.memory_bytes)
    except OSError as error:
        damage = _words(error)
    except MemoryDamaged as error:
        damage = str(error)
    return Found(Part.MEMORY, PACKED_FILE, chunks.read_bytes, tuple(chunks.sums), damage)


class _Chunks:
    """The sums of a sparse file, from pieces of its data in order; what lies between them is zeros."""

    def __init__(self) -> None:
        self.sums: list[str | None] = []
        self.read_bytes = 0
        self._chunk = bytearray()

    def add(self, offset: int, data: bytes | memoryview) -> None:
        """Take the next piece, which lies at `offset`."""
        self.read_bytes += len(data)
        self.skip_to(offset)
        view = memoryview(data)
        while view:
            room = CHUNK_BYTES - len(self._chunk)
            self._chunk += view[:room]
            view = view[room:]
            if len(self._chunk) == CHUNK_BYTES:
                self._close()

    def skip_to(self, offset: int) -> None:
        """Have zeros up to `offset`, which is not before where we are."""
        index, rest = divmod(offset, CHUNK_BYTES)
        if index > len(self.sums):
            if self._chunk:
                self._chunk = self._chunk.ljust(CHUNK_BYTES, b"\0")
                self._close()
            self.sums += [None] * (index - len(self.sums))
        self._chunk = self._chunk.ljust(rest, b"\0")

    def end_at(self, size_bytes: int) -> None:
        """Have the file end there."""
        self.skip_to(size_bytes)
        if self._chunk:
            self._close()

    def _close(self) -> None:
        is_empty = self._chunk == _ZEROS[: len(self._chunk)]
        self.sums.append(None if is_empty else hashlib.sha256(self._chunk).hexdigest())
        self._chunk = bytearray()


def _words(error: OSError) -> str:
    return error.strerror or str(error)


def _sums(raw: Iterable[str | None]) -> Sums:
    return tuple(None if one is None else str(one) for one in raw)


def main(argv: list[str]) -> None:
    """Look at a capture or a disk as a program; what was found is written to stdout, as JSON."""
    parent, kind, *files = argv
    end_with(int(parent))
    os.nice(NICENESS)
    paths = [Path(file) for file in files]
    try:
        found = [look_at_disk(paths)] if kind == Part.DISK else look_at(*paths)
    except (OSError, ValueError, TypeError, KeyError) as error:
        sys.exit(str(error))
    json.dump([asdict(one) for one in found], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
