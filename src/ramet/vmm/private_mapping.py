"""The memory of a guest that was loaded from a file, seen from outside.

A VMM maps that file privately, in one region or, beyond 3 GiB, in two. The guest's own pages in it are
just those that differ from the file: what a difference consists of, without the VMM's help.
"""

import ctypes
import mmap
import os
import re
from dataclasses import dataclass

from ramet.linux.filled_once import FilledOnce
from ramet.linux.pagemap import PageRuns, copy_pages, find_own_pages, write_pages

_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p ([0-9a-f]+) \S+ ([1-9]\d*) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of a process's memory: bytes from address `start`, of a file from `offset`."""

    start: int
    length_bytes: int
    offset: int


def find_regions(pid: int, file_fd: int) -> list[Region]:
    """Return where `pid` maps the open file `file_fd` privately and writable, if anywhere.

    Raises:
        OSError: the process is gone, or not ours to look at.
    """
    wanted = os.fstat(file_fd)
    with open(f"/proc/{pid}/maps") as maps:
        text = maps.read()
    found: list[Region] = []
    for match in _LINE.finditer(text):
        if int(match[4]) != wanted.st_ino:
            continue
        # The numbers of the device in `maps` are not always those of stat(2).
        if os.path.samestat(os.stat(f"/proc/{pid}/map_files/{match[1]}-{match[2]}"), wanted):
            start = int(match[1], 16)
            found.append(Region(start, int(match[2], 16) - start, int(match[3], 16)))
    return found


def covers(regions: list[Region], length_bytes: int) -> bool:
    """Tell whether the first `length_bytes` of the file are mapped in `regions`, all of them."""
    end = 0
    for region in sorted(regions, key=lambda region: region.offset):
        if region.offset > end:
            return False
        end = region.offset + region.length_bytes
    return end >= length_bytes


def find_changes(pid: int, regions: list[Region]) -> PageRuns:
    """Return which parts of the file differ in the memory of `pid`, by their offsets.

    Raises:
        OSError: the process is gone.
    """
    return tuple(
        (address - region.start + region.offset, length)
        for region in sorted(regions, key=lambda region: region.offset)
        for address, length in find_own_pages(pid, region.start, region.start + region.length_bytes)
    )


def copy_changes(pid: int, regions: list[Region], runs: PageRuns, target: FilledOnce) -> int:
    """Copy `runs` of the memory of `pid` to their offsets in `target`; returns the bytes.

    Raises:
        OSError: the process is gone, or there is no room.
    """
    _, here = target.map_for_fill()
    return sum(
        copy_pages(pid, _addresses(region, runs), here + region.offset - region.start) for region in regions
    )


def lay_over(pid: int, regions: list[Region], changes_fd: int, runs: PageRuns) -> int:
    """Write `runs` of the file `changes_fd` over the memory of `pid`; returns the bytes.

    Raises:
        OSError: the process is gone.
    """
    with mmap.mmap(changes_fd, os.fstat(changes_fd).st_size, flags=mmap.MAP_PRIVATE) as mapped:
        # The temporary export is dropped here, so the mapping can be closed.
        here = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        return sum(
            write_pages(pid, _addresses(region, runs), here + region.offset - region.start)
            for region in regions
        )


def _addresses(region: Region, runs: PageRuns) -> list[tuple[int, int]]:
    """Return the runs of the file that lie in `region`, by address; none lies in two."""
    return [
        (offset - region.offset + region.start, length)
        for offset, length in runs
        if region.offset <= offset < region.offset + region.length_bytes
    ]
