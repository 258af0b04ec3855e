"""The file that a snapshot is exported to: a tar archive whose every byte is told beforehand.

```
manifest.json       an ExportManifest: what the snapshot is, and how large its parts are
disk                the whole disk, that of the base with it
memory, devices     only of a snapshot that holds memory
checksums.json      the SHA-256 of each entry before it, in hexadecimal: its end proves that it is whole
```

A part is a row of pieces of data, each behind its offset and its length (12 bytes, big-endian), in order and
without overlap; what is between them is zeros. Sizes are known before the first byte is read, so both ways
are a stream. A reader compares every header with the one it would have written itself: no name in a file says
where anything is put, and a byte that was changed is seen wherever it is.
"""

import hashlib
import json
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from ramet.core.errors import Invalid
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import InstanceSpec
from ramet.linux.filled_once import FilledOnce
from ramet.linux.sparse import DataMap, Run
from ramet.snapshots.whole_memory import whole_runs
from ramet.vmm.port import Capture, CaptureFormat

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
CHECKSUMS: Final = "checksums.json"
MANIFEST_BYTES_MAX: Final = 1 << 20
PIECE_BYTES_MAX: Final = 1 << 20
SLAB_BYTES: Final = 1 << 20
"""How much is read, checked or written at a time."""
PAGE_BYTES: Final = 4096
"""Of memory and of devices; the disk's unit is its cluster."""
BLOCK_BYTES: Final = 512
END: Final = bytes(2 * BLOCK_BYTES)

Runs = Callable[[], Iterator[Run]]
"""Tells where the data of a part is, the same each time."""

_PIECE: Final = struct.Struct(">QI")
PIECE_HEAD_BYTES: Final = _PIECE.size
_USTAR_BYTES_MAX: Final = 8**11 - 1
"""What fits the field of a size; more is said in an extended header (POSIX.1-2001, pax)."""


class BadExport(Invalid):
    """A file is no exported snapshot, or is cut off or damaged."""

    code = "bad_export"
    remedy_default = "export the snapshot again and send the whole file: ramet snapshot export SNAPSHOT FILE"


@dataclass(frozen=True, slots=True)
class PartHead:
    """How large a part is: `size_bytes` with its zeros, `packed_bytes` what its entry holds."""

    size_bytes: int
    packed_bytes: int


@dataclass(frozen=True, slots=True)
class ExportManifest:
    """What an exported snapshot is, without what only its host knows.

    `source` is the id of the instance it was taken of; `created_at` Unix seconds; `rootfs_sha256` that of the
    image's root disk, which memory remembers pieces of. `format`, `rootfs_sha256`, `memory` and `devices`
    are None without memory.
    """

    schema: int
    name: str | None
    kind: SnapshotKind
    source: str
    source_name: str
    spec: InstanceSpec
    created_at: float
    disk: PartHead
    tags: Mapping[str, str] = field(default_factory=dict)
    format: CaptureFormat | None = None
    rootfs_sha256: str | None = None
    memory: PartHead | None = None
    devices: PartHead | None = None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    def parts(self) -> dict[str, PartHead]:
        """Return the parts that it has, in the order of the file."""
        found = {"disk": self.disk, "memory": self.memory, "devices": self.devices}
        return {name: head for name, head in found.items() if head is not None}


def head_of(size_bytes: int, runs: Iterable[Run]) -> PartHead:
    """Return the head of the part that `runs` make."""
    packed_bytes = 0
    for run in runs:
        piece_count = -(-run.length_bytes // PIECE_BYTES_MAX)
        packed_bytes += run.length_bytes + piece_count * _PIECE.size
    return PartHead(size_bytes, packed_bytes)


def runs_of(file: FilledOnce) -> Runs:
    """Return where a sealed file holds data.

    Raises:
        OSError: the file system cannot tell.
    """
    return DataMap(file.fd, PAGE_BYTES).runs


def runs_of_memory(capture: Capture) -> Runs:
    """Return where the memory of a stored capture is, also of one that is a difference.

    Raises:
        OSError: the file system cannot tell.
    """
    runs = list(whole_runs(capture.mapped.fd, capture.memory.fd, capture.changes))
    return lambda: iter(runs)


def entry_header(name: str, size_bytes: int) -> bytes:
    """Return what stands before an entry of `size_bytes`."""
    if size_bytes <= _USTAR_BYTES_MAX:
        return _header(name, size_bytes, tarfile.REGTYPE)
    record = f" size={size_bytes}\n"
    length = len(record) + 2
    assert 10 <= length <= 99, "its own length has two digits"
    record = f"{length}{record}"
    extended = _header("pax", len(record), tarfile.XHDTYPE) + record.encode() + padding(len(record))
    return extended + _header(name, 0, tarfile.REGTYPE)


def padding(size_bytes: int) -> bytes:
    """Return what stands behind an entry of `size_bytes`."""
    return bytes(-size_bytes % BLOCK_BYTES)


def packed(manifest: ExportManifest, sources: Mapping[str, Runs]) -> Iterator[bytes]:
    """Yield the file in slabs; `sources` gives the runs of each part, as they were when the heads were made.

    Raises:
        OSError, ValueError: a part cannot be read.
    """
    sums: dict[str, str] = {}
    slab = bytearray()
    text = manifest.to_bytes()
    sums[MANIFEST] = hashlib.sha256(text).hexdigest()
    slab += entry_header(MANIFEST, len(text)) + text + padding(len(text))
    for name, head in manifest.parts().items():
        slab += entry_header(name, head.packed_bytes)
        sum_, packed_bytes = hashlib.sha256(), 0
        for piece in _pieces(sources[name]()):
            sum_.update(piece)
            packed_bytes += len(piece)
            slab += piece
            if len(slab) >= SLAB_BYTES:
                yield bytes(slab)
                slab.clear()
        assert packed_bytes == head.packed_bytes, f"the part {name} has changed"
        sums[name] = sum_.hexdigest()
        slab += padding(packed_bytes)
    text = checksums(sums)
    yield bytes(slab) + entry_header(CHECKSUMS, len(text)) + text + padding(len(text)) + END


def checksums(sums: Mapping[str, str]) -> bytes:
    """Return the last entry."""
    return json.dumps(sums, separators=(",", ":")).encode()


class PartReader:
    """Takes a part apart as it comes in, and gives its pieces to `write`. Knows nothing of its checksum.

    Args:
        block_bytes: a piece begins at a multiple of it, and ends at one or with the part.
    """

    def __init__(
        self, name: str, size_bytes: int, block_bytes: int, write: Callable[[int, bytes], None]
    ) -> None:
        self._name, self._size_bytes, self._block_bytes = name, size_bytes, block_bytes
        self._write = write
        self._buffer = bytearray()
        self._end = 0
        self._sum = hashlib.sha256()

    def feed(self, data: bytes) -> None:
        """Take more of the part; blocks while it is written.

        Raises:
            BadExport: it is none.
            RametError: of `write`.
        """
        self._sum.update(data)
        self._buffer += data
        while len(self._buffer) >= _PIECE.size:
            offset, length_bytes = _PIECE.unpack_from(self._buffer)
            self._check(offset, length_bytes)
            if len(self._buffer) < _PIECE.size + length_bytes:
                return
            piece = bytes(memoryview(self._buffer)[_PIECE.size : _PIECE.size + length_bytes])
            del self._buffer[: _PIECE.size + length_bytes]
            self._write(offset, piece)
            self._end = offset + length_bytes

    def finish(self) -> str:
        """Return the checksum of the whole part.

        Raises:
            BadExport: it ends in the middle of a piece.
        """
        if self._buffer:
            raise BadExport(f"the {self._name} of the exported snapshot is damaged")
        return self._sum.hexdigest()

    def _check(self, offset: int, length_bytes: int) -> None:
        end = offset + length_bytes
        if not (
            0 < length_bytes <= PIECE_BYTES_MAX
            and self._end <= offset
            and offset % self._block_bytes == 0
            and end <= self._size_bytes
            and (end % self._block_bytes == 0 or end == self._size_bytes)
        ):
            raise BadExport(f"the {self._name} of the exported snapshot is damaged")


def _pieces(runs: Iterator[Run]) -> Iterator[bytes]:
    for run in runs:
        for skip in range(0, run.length_bytes, PIECE_BYTES_MAX):
            length_bytes = min(PIECE_BYTES_MAX, run.length_bytes - skip)
            yield _PIECE.pack(run.offset + skip, length_bytes) + run.read(skip, length_bytes)


def _header(name: str, size_bytes: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size_bytes, kind, 0o600
    return info.tobuf(tarfile.USTAR_FORMAT)
