"""Whole disks, read from a chain of layers and written as one, without a process of QEMU.

A base is formatted anew on every host, so that a disk that leaves one takes the base's data with it, and
a layer that holds a whole disk lets nothing of the base it stands on shine through.
Format: docs/interop/qcow2.txt of QEMU, version 3.
"""

import os
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from ramet.disks.qcow2 import CLUSTER_BITS, CLUSTER_BYTES, MAGIC, qcow2_head
from ramet.linux.sparse import DataMap, Run

RUN_BYTES_MAX: Final = 1 << 20
_ENTRIES_PER_TABLE: Final = CLUSTER_BYTES // 8
_OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
_COPIED: Final = 1 << 63
_COMPRESSED: Final = 1 << 62
_ZERO: Final = 1
_FEATURES_KNOWN: Final = 1  # Dirty: reference counts may be off, which a reader does not need.
_REFCOUNTS_PER_BLOCK: Final = CLUSTER_BYTES // 2


class DiskReader:
    """The data of a disk whose layers do not change, topmost first; open until `close`.

    Raises, on construction:
        ValueError: a layer is none that QEMU writes for us.
        OSError: one cannot be read.
    """

    def __init__(self, chain: Sequence[tuple[Path, Literal["raw", "qcow2"]]]) -> None:
        self._fds: list[int] = []
        self._layers: list[_Layer] = []
        try:
            for path, form in chain:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._fds.append(fd)
                if form == "qcow2":
                    self._layers.append(_Layer(fd, path))
            self._base = DataMap(self._fds[-1], CLUSTER_BYTES)
        except BaseException:
            self.close()
            raise
        found = os.fstat(self._fds[-1]).st_size
        self.size_bytes = self._layers[0].size_bytes if self._layers else found

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def runs(self) -> Iterator[Run]:
        """Yield what the disk holds in order, the same each time, in whole clusters but for its end.

        Raises:
            ValueError: a layer is damaged.
            OSError: one cannot be read.
        """
        base, in_base = self._fds[-1], set[int]()
        for run in self._base.runs():
            first = run.offset // CLUSTER_BYTES
            in_base.update(range(first, first + -(-run.length_bytes // CLUSTER_BYTES)))
        cluster_count = -(-self.size_bytes // CLUSTER_BYTES)
        for table_index in range(-(-cluster_count // _ENTRIES_PER_TABLE)):
            first = table_index * _ENTRIES_PER_TABLE
            count = min(_ENTRIES_PER_TABLE, cluster_count - first)
            places: list[tuple[int, int] | None] = [None] * count
            untold: Sequence[int] = range(count)
            for layer in self._layers:
                untold = layer.place(table_index, untold, places)
            for index in untold:
                if first + index in in_base:
                    places[index] = (base, (first + index) * CLUSTER_BYTES)
            yield from self._joined(first, places)

    def _joined(self, first: int, places: Sequence[tuple[int, int] | None]) -> Iterator[Run]:
        """Yield the clusters that have a place, those together that lie together."""
        index = 0
        while index < len(places):
            place, begin = places[index], index
            index += 1
            if place is None:
                continue
            fd, file_offset = place
            while (
                index < len(places)
                and (index - begin) * CLUSTER_BYTES < RUN_BYTES_MAX
                and places[index] == (fd, file_offset + (index - begin) * CLUSTER_BYTES)
            ):
                index += 1
            offset = (first + begin) * CLUSTER_BYTES
            length_bytes = min((index - begin) * CLUSTER_BYTES, self.size_bytes - offset)
            yield Run(offset, length_bytes, fd, file_offset)


class _Layer:
    """One open qcow2 file, read only."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self._path = fd, path
        head = os.pread(fd, 80, 0)
        if len(head) < 80:
            raise ValueError(f"{path.name} is cut off")
        magic, version = struct.unpack_from(">II", head)
        bits, self.size_bytes = struct.unpack_from(">IQ", head, 20)
        l1_count, l1_offset = struct.unpack_from(">IQ", head, 36)
        (features,) = struct.unpack_from(">Q", head, 72)
        if (magic, version, bits) != (MAGIC, 3, CLUSTER_BITS) or features & ~_FEATURES_KNOWN:
            raise ValueError(f"{path.name} is no layer of ours")
        self._l1 = self._table(l1_offset, l1_count)

    def place(
        self, table_index: int, untold: Sequence[int], places: list[tuple[int, int] | None]
    ) -> Sequence[int]:
        """Say where clusters of one table lie; returns those that this layer tells nothing of."""
        l2_offset = self._l1[table_index] & _OFFSET_MASK if table_index < len(self._l1) else 0
        if not l2_offset or not untold:
            return untold
        table = self._table(l2_offset, _ENTRIES_PER_TABLE)
        left = []
        for index in untold:
            entry = table[index]
            if entry & _COMPRESSED:
                raise ValueError(f"{self._path.name} is compressed")
            if entry & _ZERO:
                continue
            if entry & _OFFSET_MASK:
                places[index] = (self._fd, entry & _OFFSET_MASK)
            else:
                left.append(index)
        return left

    def _table(self, offset: int, count: int) -> "array[int]":
        data = os.pread(self._fd, count * 8, offset)
        if len(data) != count * 8:
            raise ValueError(f"{self._path.name} is cut off")
        return _swapped(array("Q", data))


class DiskWriter:
    """A new qcow2 file that holds a whole disk of `size_bytes` over `backing`, which need not be there yet.

    What is not written reads as zeros, whatever the backing holds. Whole when `finish` returns; open until
    `close`.

    Raises, on construction:
        OSError: the file system refuses, or there is such a file.
    """

    def __init__(self, path: Path, size_bytes: int, backing: Path) -> None:
        self._cluster_count = -(-size_bytes // CLUSTER_BYTES)
        self._table_count = -(-self._cluster_count // _ENTRIES_PER_TABLE)
        self._l1_clusters = -(-self._table_count // _ENTRIES_PER_TABLE)
        self._l2_offset = (1 + self._l1_clusters) * CLUSTER_BYTES
        self._end = self._l2_offset + self._table_count * CLUSTER_BYTES
        self._size_bytes, self._backing = size_bytes, backing
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            tables = range(self._l2_offset, self._end, CLUSTER_BYTES)
            self._write(CLUSTER_BYTES, _packed([offset | _COPIED for offset in tables]))
            zeros = _packed([_ZERO] * _ENTRIES_PER_TABLE)
            for offset in tables:
                self._write(offset, zeros)
        except BaseException:
            self.close()
            raise

    def write(self, offset: int, data: bytes) -> None:
        """Write whole clusters, or up to the end of the disk, that were not written yet.

        Raises:
            OSError: the disk is full.
        """
        assert offset % CLUSTER_BYTES == 0, "it begins with a cluster"
        count = -(-len(data) // CLUSTER_BYTES)
        assert offset + len(data) <= self._size_bytes, "it is within the disk"
        assert len(data) % CLUSTER_BYTES == 0 or offset + len(data) == self._size_bytes, "whole clusters"
        self._write(self._end, data.ljust(count * CLUSTER_BYTES, b"\0"))
        entries = range(self._end, self._end + count * CLUSTER_BYTES, CLUSTER_BYTES)
        first = offset // CLUSTER_BYTES
        self._write(self._l2_offset + first * 8, _packed([place | _COPIED for place in entries]))
        self._end += count * CLUSTER_BYTES

    def finish(self) -> None:
        """Write the reference counts and the header, and have the file durable.

        Raises:
            OSError: the disk is full, or failing.
        """
        clusters = self._end // CLUSTER_BYTES
        blocks = tables = 0
        while blocks * _REFCOUNTS_PER_BLOCK < clusters + blocks + tables:  # They count themselves, too.
            blocks += 1
            tables = -(-blocks // _ENTRIES_PER_TABLE)
        total, block_offset = clusters + blocks + tables, self._end
        table_offset = block_offset + blocks * CLUSTER_BYTES
        for index in range(blocks):
            count = min(_REFCOUNTS_PER_BLOCK, total - index * _REFCOUNTS_PER_BLOCK)
            block = (b"\0\1" * count).ljust(CLUSTER_BYTES, b"\0")
            self._write(block_offset + index * CLUSTER_BYTES, block)
        table = _packed([block_offset + index * CLUSTER_BYTES for index in range(blocks)])
        self._write(table_offset, table.ljust(tables * CLUSTER_BYTES, b"\0"))
        head = qcow2_head(
            self._size_bytes,
            self._backing,
            "raw",
            l1_offset=CLUSTER_BYTES,
            refcount_table=(table_offset, tables),
        )
        self._write(0, head)
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written


def _packed(entries: Sequence[int]) -> bytes:
    return _swapped(array("Q", entries)).tobytes()


def _swapped(entries: "array[int]") -> "array[int]":
    """Turn entries from the file's order of bytes, which is the network's, into ours, or back."""
    if sys.byteorder == "little":
        entries.byteswap()
    return entries
