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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

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


@dataclass(frozen=True, slots=True)
class PackedMemory:
    """What `pack` made: sizes in bytes, of the packed file, of the memory, and of the data in it."""

    size_bytes: int
    memory_bytes: int
    data_bytes: int


def pack(raw: Path, packed: Path, level: int = LEVEL_DEFAULT) -> PackedMemory:
    """Pack the sparse file `raw`, a guest's whole memory, into the new file `packed`, durably. Blocks.

    Raises:
        OSError: one cannot be read, or is no whole number of pages, or the other cannot be written; there
            may be a part of it then.
    """
    with raw.open("rb", buffering=0) as source, packed.open("xb") as sink:
        memory_bytes = os.fstat(source.fileno()).st_size
        if memory_bytes % PAGE_BYTES:
            raise OSError(errno.EINVAL, f"{raw} is no whole number of pages")
        data_bytes = _write(sink, _windows(source.fileno(), memory_bytes), memory_bytes, level)
        sink.flush()
        os.fsync(sink.fileno())
        return PackedMemory(os.fstat(sink.fileno()).st_size, memory_bytes, data_bytes)


def _write(sink: BinaryIO, windows: Iterable[tuple[int, bytes]], memory_bytes: int, level: int) -> int:
    """Write frames and table; return how much data there is, in bytes."""
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {parameter.compression_level: level, parameter.checksum_flag: 1}
    compressor = zstd.ZstdCompressor(options=options)
    table, data_bytes = bytearray(), 0
    for index, content in windows:
        pages, data = _data_pages(content)
        if not pages:
            continue
        compressor.set_pledged_input_size(len(data))  # Each frame tells what it holds.
        frame = compressor.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)
        table += _ENTRY.pack(index, len(frame), pages)
        data_bytes += len(data)
        sink.write(frame)
    tail_bytes = len(table) + _FOOTER.size
    sink.write(_SKIPPABLE.pack(_SKIPPABLE_MAGIC, tail_bytes))
    sink.write(table)
    entry_count = len(table) // _ENTRY.size
    sink.write(_FOOTER.pack(entry_count, memory_bytes, zlib.crc32(table), tail_bytes, _MAGIC))
    return data_bytes


def _windows(fd: int, memory_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield (index, content) of each window that may hold data."""
    position = 0
    while position < memory_bytes:
        try:
            data_at = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # Nothing but a hole is left.
                return
            raise
        index = data_at // WINDOW_BYTES
        position = index * WINDOW_BYTES
        yield index, _read(fd, min(WINDOW_BYTES, memory_bytes - position), position)
        position += WINDOW_BYTES


def _read(fd: int, size_bytes: int, offset: int) -> bytes:
    content = b""
    while len(content) < size_bytes:
        piece = os.pread(fd, size_bytes - len(content), offset + len(content))
        if not piece:
            raise OSError(errno.EIO, "the memory has been cut off")
        content += piece
    return content


def _data_pages(content: bytes) -> tuple[int, bytes]:
    """Return which pages of a window are not all zeroes (bit n is page n), and those pages."""
    pages, data = 0, []
    for page in range(len(content) // PAGE_BYTES):
        piece = content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        if piece != _ZERO_PAGE:
            pages |= 1 << page
            data.append(piece)
    return pages, b"".join(data)
