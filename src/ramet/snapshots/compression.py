"""Memory, compressed: only what is data of a sparse file.

By zstd it is packed in windows, of which the pager can serve a guest (`ramet.pager.packed`). By lz4 it is one
stream; where its data belongs is not in there, but told to who compresses, who keeps it. So is a checksum.

As a program it compresses at the lowest priority: `python -m ramet.snapshots.compression RAW PACKED ALGORITHM
LEVEL`. A process of its own, and not a thread, because a thread of low priority that holds the interpreter's
lock would hold up the daemon.
"""

import ctypes
import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import lz4.frame

from ramet.core.compression import Compression, CompressionAlgorithm
from ramet.linux.pagemap import PageRuns
from ramet.linux.sparse import Run
from ramet.pager.packed import PackedDamaged, Packer, unpack
from ramet.snapshots.whole_memory import open_whole

CHUNK_BYTES: Final = 1 << 20
PLAIN_BYTES_MAX: Final = 4 << 20
"""Of what one chunk is unpacked to at once."""
NICENESS: Final = 19
_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


class MemoryDamaged(ValueError):
    """What was compressed is not what it was."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """What lies in a compressed file: `size_bytes` is its own; `sha256` that of all data, in hex.

    `extents` are (offset, size) of the data in the sparse file, in bytes; None: it is packed, and tells them.
    """

    how: Compression
    size_bytes: int
    sha256: str
    extents: tuple[tuple[int, int], ...] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the pager can serve a guest of it."""
        return self.extents is None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what `asdict` and JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: they did not.
        """
        how = Compression(CompressionAlgorithm(raw["how"]["algorithm"]), raw["how"]["level"])
        extents = raw["extents"]
        if extents is not None:
            extents = tuple((int(offset), int(size)) for offset, size in extents)
        return cls(how, int(raw["size_bytes"]), str(raw["sha256"]), extents)


def compress(raw: Path, packed: Path, how: Compression, changes: PageRuns | None = None) -> Compressed:
    """Compress the data of the sparse file `raw` into the new file `packed`, durably. Blocks.

    Args:
        changes: where the file of changes beside `raw` is to be taken instead, as (offset, length) in bytes.

    Raises:
        OSError: one cannot be read, or the other not be written.
    """
    with ExitStack() as stack:
        runs = stack.enter_context(open_whole(raw, changes))
        sink = stack.enter_context(packed.open("xb"))
        if how.algorithm is CompressionAlgorithm.ZSTD:
            done = _pack(runs, sink, raw.stat().st_size, how)
        else:
            done = _compress_stream(runs, sink, how)
        sink.flush()
        os.fsync(sink.fileno())
        return replace(done, size_bytes=os.fstat(sink.fileno()).st_size)


def _pack(runs: Iterator[Run], sink: BinaryIO, memory_bytes: int, how: Compression) -> Compressed:
    digest = hashlib.sha256()
    packer = Packer(sink, memory_bytes, how.level, on_data=digest.update)
    for run in runs:
        for offset, data in run.pieces(CHUNK_BYTES):
            packer.add(offset, data)
    packer.finish()
    return Compressed(how, 0, digest.hexdigest())


def _compress_stream(runs: Iterator[Run], sink: BinaryIO, how: Compression) -> Compressed:
    digest, extents = hashlib.sha256(), list[tuple[int, int]]()
    frame = lz4.frame.LZ4FrameCompressor(compression_level=how.level)
    sink.write(frame.begin())
    for run in runs:
        if extents and sum(extents[-1]) == run.offset:
            extents[-1] = (extents[-1][0], extents[-1][1] + run.length_bytes)
        else:
            extents.append((run.offset, run.length_bytes))
        for _, data in run.pieces(CHUNK_BYTES):
            digest.update(data)
            sink.write(frame.compress(data))
    sink.write(frame.flush())
    return Compressed(how, 0, digest.hexdigest(), tuple(extents))


def decompress(packed: Path, raw: Path, compressed: Compressed, memory_bytes: int) -> None:
    """Make `raw` again, a sparse file of `memory_bytes` bytes. Not durable; blocks.

    Raises:
        MemoryDamaged: `packed` is not what was compressed; there is no `raw` then.
        OSError: as of `compress`; there is no `raw` then, either.
    """
    try:
        with packed.open("rb", buffering=0) as source, raw.open("xb", buffering=0) as sink:
            os.ftruncate(sink.fileno(), memory_bytes)
            for offset, data in unpacked(source, compressed):
                _write_at(sink.fileno(), data, offset)
    except BaseException:
        raw.unlink(missing_ok=True)
        raise


def data_extents(fd: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of what is data in a sparse file, in bytes."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # There is none behind `end`.
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end - start


def unpacked(source: BinaryIO, compressed: Compressed) -> Iterator[tuple[int, memoryview]]:
    """Yield the data of an open compressed file, in order, each piece with its offset in the sparse file.

    Raises:
        MemoryDamaged: it is not what was compressed; what has been yielded is then of no use.
        OSError: it cannot be read.
    """
    digest, is_whole = hashlib.sha256(), True
    if compressed.extents is None:  # It is packed.
        try:
            for offset, piece in unpack(source):
                digest.update(piece)
                yield offset, piece
        except PackedDamaged as error:
            raise MemoryDamaged(str(error)) from error
    else:
        left_bytes = sum(size_bytes for _, size_bytes in compressed.extents)
        for offset, piece in _unpacked_stream(source, compressed.extents):
            digest.update(piece)
            left_bytes -= len(piece)
            yield offset, piece
        is_whole = not left_bytes
    if not is_whole or digest.hexdigest() != compressed.sha256:
        raise MemoryDamaged("it does not hold what was compressed")


def _unpacked_stream(
    source: BinaryIO, all_extents: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, memoryview]]:
    extents = iter(all_extents)
    offset, left = next(extents, (0, 0))
    for chunk in _plain(source):
        view = memoryview(chunk)
        while view:
            if not left:
                offset, left = next(extents, (0, 0))
                if not left:
                    raise MemoryDamaged("it holds more than was compressed")
            piece = view[:left]
            yield offset, piece
            offset, left, view = offset + len(piece), left - len(piece), view[len(piece) :]


def _plain(source: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a file of lz4, whatever of it can be read; the rest is an error.

    Raises:
        MemoryDamaged: it is no such file, or cut off.
    """
    frame = lz4.frame.LZ4FrameDecompressor()
    try:
        while not frame.eof:
            chunk = source.read(CHUNK_BYTES) if frame.needs_input else b""
            if frame.needs_input and not chunk:
                raise MemoryDamaged("it is cut off")
            yield frame.decompress(chunk, PLAIN_BYTES_MAX)
    except (RuntimeError, EOFError) as error:  # The first is lz4's.
        raise MemoryDamaged(str(error)) from error


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def end_with(parent: int) -> None:
    """Have the kernel end this process with its parent, which is `parent` unless it is gone already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main(argv: list[str]) -> None:
    """Compress as a program; what `compress` returns is written to stdout, as JSON."""
    raw, packed, algorithm, level, parent = argv
    end_with(int(parent))
    os.nice(NICENESS)
    try:
        how = Compression(CompressionAlgorithm(algorithm), int(level))
        done = compress(Path(raw), Path(packed), how, json.load(sys.stdin))
    except OSError as error:
        sys.exit(error.strerror)
    json.dump(asdict(done), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
