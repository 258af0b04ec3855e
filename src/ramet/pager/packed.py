"""Packed memory: a zstd stream that the pager can read from any window (docs/pager.md has the format).

Each window of 64 KiB that holds data is one frame, with its data pages one behind the other, so that the
whole is the data of the file in its order, as any zstd decoder unpacks it. The table of the frames is a frame
that decoders skip.
"""

import errno
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from ramet.linux.sparse import data_runs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PAGE_BYTES: Final = 4096
WINDOW_BYTES: Final = 64 * 1024
LEVEL_DEFAULT: Final = 3

_ENTRY: Final = struct.Struct("<IIH")  # Window, size of its frame in bytes, data pages.
_FOOTER: Final = struct.Struct("<IQII8s")  # Entries, memory and checksum, size of table and footer, magic.
_SKIPPABLE: Final = struct.Struct("<II")  # RFC 8878, 3.1.2: magic, size of what follows.
_SKIPPABLE_MAGIC: Final = 0x184D2A5E
_MAGIC: Final = b"RAMETMP1"
_ZERO_PAGE: Final = bytes(PAGE_BYTES)
_PIECE_BYTES: Final = 1 << 20


class PackedDamaged(ValueError):
    """It is no packed memory, or not what it was."""


@dataclass(frozen=True, slots=True)
class PackedMemory:
    """What was packed: sizes in bytes, of the packed file, of the memory, and of the data in it."""

    size_bytes: int
    memory_bytes: int
    data_bytes: int


class Packer:
    """Packs a guest's memory of `memory_bytes` bytes, given in pieces, into the new file `sink`.

    Args:
        on_data: called with each page that is not all zeroes, in order.

    Raises, on construction:
        OSError: it is no whole number of pages.
    """

    def __init__(
        self,
        sink: BinaryIO,
        memory_bytes: int,
        level: int = LEVEL_DEFAULT,
        on_data: Callable[[memoryview], None] = lambda page: None,
    ) -> None:
        if memory_bytes % PAGE_BYTES:
            raise OSError(errno.EINVAL, "the memory is no whole number of pages")
        parameter = zstd.CompressionParameter
        options: dict[int, int] = {parameter.compression_level: level, parameter.checksum_flag: 1}
        self._compressor = zstd.ZstdCompressor(options=options)
        self._sink, self._memory_bytes, self._on_data = sink, memory_bytes, on_data
        self._table, self._frames_bytes, self._data_bytes = bytearray(), 0, 0
        self._window, self._pages, self._data = 0, 0, bytearray()

    def add(self, offset: int, data: bytes) -> None:
        """Pack the next piece, whole pages that lie at `offset`.

        Raises:
            OSError: it cannot be written.
        """
        view = memoryview(data)
        for start in range(0, len(view), PAGE_BYTES):
            page = view[start : start + PAGE_BYTES]
            if page == _ZERO_PAGE:
                continue
            window, index = divmod((offset + start) // PAGE_BYTES, WINDOW_BYTES // PAGE_BYTES)
            if window != self._window:
                self._end_frame()
                self._window = window
            self._pages |= 1 << index
            self._data += page
            self._on_data(page)

    def finish(self) -> PackedMemory:
        """Write what is left, and the table. Not durable.

        Raises:
            OSError: it cannot be written.
        """
        self._end_frame()
        tail_bytes = len(self._table) + _FOOTER.size
        entry_count, checksum = len(self._table) // _ENTRY.size, zlib.crc32(self._table)
        self._sink.write(_SKIPPABLE.pack(_SKIPPABLE_MAGIC, tail_bytes))
        self._sink.write(self._table)
        self._sink.write(_FOOTER.pack(entry_count, self._memory_bytes, checksum, tail_bytes, _MAGIC))
        self._sink.flush()
        size_bytes = self._frames_bytes + _SKIPPABLE.size + tail_bytes
        return PackedMemory(size_bytes, self._memory_bytes, self._data_bytes)

    def _end_frame(self) -> None:
        if not self._pages:
            return
        self._compressor.set_pledged_input_size(len(self._data))  # Each frame tells what it holds.
        frame = self._compressor.compress(self._data, zstd.ZstdCompressor.FLUSH_FRAME)
        self._sink.write(frame)
        self._table += _ENTRY.pack(self._window, len(frame), self._pages)
        self._frames_bytes += len(frame)
        self._data_bytes += len(self._data)
        self._pages, self._data = 0, bytearray()


def pack(raw: Path, packed: Path, level: int = LEVEL_DEFAULT) -> PackedMemory:
    """Pack the sparse file `raw`, a guest's whole memory, into the new file `packed`, durably. Blocks.

    Raises:
        OSError: one cannot be read, or is no whole number of pages, or the other cannot be written; there
            may be a part of it then.
    """
    with raw.open("rb", buffering=0) as source, packed.open("xb") as sink:
        packer = Packer(sink, os.fstat(source.fileno()).st_size, level)
        for run in data_runs(source.fileno(), PAGE_BYTES):
            for offset, data in run.pieces(_PIECE_BYTES):
                packer.add(offset, data)
        done = packer.finish()
        os.fsync(sink.fileno())
        return done


def read_memory_bytes(packed: BinaryIO) -> int:
    """Return how large the memory is that is packed in an open file, in bytes.

    Raises:
        PackedDamaged: none is.
        OSError: it cannot be read.
    """
    return _read_footer(packed)[1]


def unpack(packed: BinaryIO) -> Iterator[tuple[int, memoryview]]:
    """Yield the data of an open packed file, in order, each piece with its offset in the memory.

    Raises:
        PackedDamaged: it is not what was packed; what has been yielded before, is.
        OSError: it cannot be read.
    """
    table, _ = _read_footer(packed)
    packed.seek(0)
    for window, size_bytes, pages in _ENTRY.iter_unpack(table):
        data = memoryview(_unpack_frame(packed.read(size_bytes), pages.bit_count() * PAGE_BYTES))
        for index, count in _bit_runs(pages):
            yield window * WINDOW_BYTES + index * PAGE_BYTES, data[: count * PAGE_BYTES]
            data = data[count * PAGE_BYTES :]


def _bit_runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield where bits are set in a row: the lowest's number, and how many they are."""
    index = 0
    while bits:
        skipped = (bits & -bits).bit_length() - 1
        bits >>= skipped
        count = (~bits & (bits + 1)).bit_length() - 1
        bits >>= count
        index += skipped
        yield index, count
        index += count


def _unpack_frame(frame: bytes, data_bytes: int) -> bytes:
    decompressor = zstd.ZstdDecompressor()
    try:
        data: bytes = decompressor.decompress(frame, data_bytes + 1)
    except (zstd.ZstdError, EOFError) as error:
        raise PackedDamaged(str(error)) from error
    if not decompressor.eof or decompressor.unused_data or len(data) != data_bytes:
        raise PackedDamaged("a window does not hold what its table says")
    return data


def _read_footer(packed: BinaryIO) -> tuple[bytes, int]:
    """Return the table of frames, and the size of the memory in bytes."""
    size_bytes = packed.seek(0, os.SEEK_END)
    if size_bytes < _FOOTER.size:
        raise PackedDamaged("it is cut off")
    packed.seek(size_bytes - _FOOTER.size)
    entry_count, memory_bytes, checksum, tail_bytes, magic = _FOOTER.unpack(packed.read(_FOOTER.size))
    table_bytes = entry_count * _ENTRY.size
    if magic != _MAGIC or tail_bytes != table_bytes + _FOOTER.size or tail_bytes > size_bytes:
        raise PackedDamaged("it does not end as packed memory does")
    packed.seek(size_bytes - tail_bytes)
    table = packed.read(table_bytes)
    if zlib.crc32(table) != checksum:
        raise PackedDamaged("its table is damaged")
    return table, memory_bytes
