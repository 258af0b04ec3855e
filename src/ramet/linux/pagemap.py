"""Which pages of another process are its own, and copying them.

A page is *own* when it is anonymous: present or swapped, and not of a file. In an anonymous mapping those
are all pages ever touched; in a private mapping of a file, exactly those that differ from the file. So
"the own pages, over the file if there is one" is the content of either.

PAGEMAP_SCAN (Linux 6.7) tells the runs in 0.1 ms; before that /proc/PID/pagemap is read and searched at C
speed (Documentation/admin-guide/mm/pagemap.rst). It also tells which of them were written since a time that
we choose, where a `ramet.linux.writewatch` is.
"""

import ctypes
import errno
import fcntl
import os
import re
import struct
from array import array
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Final

PAGE_BYTES: Final = 4096

# include/uapi/linux/fs.h
PAGEMAP_SCAN: Final = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), 96 bytes.
PAGE_IS_WRITTEN: Final = 1 << 1
PAGE_IS_FILE: Final = 1 << 2
PAGE_IS_PRESENT: Final = 1 << 3
PAGE_IS_SWAPPED: Final = 1 << 4

PM_SCAN_WP_MATCHING: Final = 1 << 0
PM_SCAN_CHECK_WPASYNC: Final = 1 << 1

_REGION_COUNT: Final = 8192
_REGION: Final = struct.Struct("3Q")  # struct page_region: start, end, categories.
_IOV_MAX: Final = 1024  # limits.h; process_vm_readv(2) takes no more at once.
_BYTES_PER_CALL: Final = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)

Run = tuple[int, int]
"""A run of pages: (address, length), both in bytes and multiples of PAGE_BYTES."""

PageRuns = tuple[Run, ...]
"""Runs of pages in a guest's memory, by their offset there, in order and without overlap."""


def find_own_pages(
    pid: int, start: int, end: int, *, has_file: bool = True, protect: bool = False
) -> list[Run]:
    """Return the runs of own pages of `pid` from address `start` to `end`, in order.

    Args:
        has_file: False promises that the mapping is of no file, which is found out five times as fast.
        protect: from here on, note which of them are written; a `WriteWatch` must be registered there.

    Raises:
        OSError: the process is gone, or not ours to look at.
    """
    fd = _open_pagemap(pid)
    try:
        flags = PM_SCAN_CHECK_WPASYNC | PM_SCAN_WP_MATCHING if protect else 0
        try:
            return _scan(fd, start, end, absent=PAGE_IS_FILE if has_file else 0, flags=flags)
        except OSError as error:
            if protect or error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
        return _read_pagemap(fd, start, end)
    finally:
        os.close(fd)


def find_written_pages(
    pid: int, start: int, end: int, *, has_file: bool = True, protect: bool = False
) -> list[Run]:
    """Return those own pages that were written, or came to be, since they were last protected.

    Arguments are those of `find_own_pages`; `protect` begins anew, page by page, and loses no write.

    Raises:
        OSError: the process is gone, or no `WriteWatch` is registered there.
    """
    fd = _open_pagemap(pid)
    try:
        flags = PM_SCAN_CHECK_WPASYNC | (PM_SCAN_WP_MATCHING if protect else 0)
        absent = PAGE_IS_FILE if has_file else 0
        return _scan(fd, start, end, present=PAGE_IS_WRITTEN, absent=absent, flags=flags)
    finally:
        os.close(fd)


def find_own_and_changed_pages(
    pid: int, start: int, end: int, *, has_file: bool = True
) -> tuple[list[Run], list[Run]]:
    """Return all own pages, and those whose content may not be that of when they were last protected.

    The latter are those written and, of a mapping of a file, also what looks swapped out: a protected page
    that was given back, and reads as the file again, looks like that (6.18).

    Raises:
        OSError: the process is gone, or no `WriteWatch` is registered there.
    """
    fd = _open_pagemap(pid)
    try:
        absent = PAGE_IS_FILE if has_file else 0
        telling = PAGE_IS_WRITTEN | (PAGE_IS_SWAPPED if has_file else 0)
        regions = _scan_regions(fd, start, end, absent=absent, flags=PM_SCAN_CHECK_WPASYNC, telling=telling)
    finally:
        os.close(fd)
    own: list[Run] = []
    changed: list[Run] = []
    for first, last, categories in regions:
        _append(own, first, last - first)
        if categories:
            _append(changed, first, last - first)
    return own, changed


def _open_pagemap(pid: int) -> int:
    return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def _scan(fd: int, start: int, end: int, *, present: int = 0, absent: int, flags: int) -> list[Run]:
    runs: list[Run] = []
    for first, last, _ in _scan_regions(fd, start, end, present=present, absent=absent, flags=flags):
        _append(runs, first, last - first)
    return runs


def _scan_regions(
    fd: int,
    start: int,
    end: int,
    *,
    present: int = 0,
    absent: int,
    flags: int,
    telling: int = PAGE_IS_PRESENT,
) -> list[tuple[int, int, int]]:
    """Return (start, end, categories) of pages with content, in all of `present` and in none of `absent`.

    Of their categories those of `telling` are told.
    """
    buffer = bytearray(_REGION_COUNT * _REGION.size)
    place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    regions: list[tuple[int, int, int]] = []
    position = start
    while position < end:
        argument = struct.pack(
            "12Q",
            96,
            flags,
            position,
            end,
            0,
            place,
            _REGION_COUNT,
            0,
            absent,  # Inverted ...
            absent | present,  # ... and demanded.
            PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            telling,
        )
        found = fcntl.ioctl(fd, PAGEMAP_SCAN, bytearray(argument))
        regions += _REGION.iter_unpack(memoryview(buffer)[: found * _REGION.size])
        if found < _REGION_COUNT:
            break
        # Not `walk_end`: 6.18 was seen to report a place before the last region there.
        position = regions[-1][1]
    return regions


# The top byte of a pagemap entry: bit 63 present, 62 swapped, 61 of a file.
_OWN: Final = bytes(1 if byte & 0xC0 and not byte & 0x20 else 0 for byte in range(256))


def _read_pagemap(fd: int, start: int, end: int) -> list[Run]:
    runs: list[Run] = []
    position = start
    while position < end:
        entries = os.pread(fd, (end - position) // PAGE_BYTES * 8, position // PAGE_BYTES * 8)
        if not entries:
            raise ProcessLookupError("pagemap ended early: the process is gone")
        own = entries[7::8].translate(_OWN)
        for match in re.finditer(rb"\x01+", own):
            _append(runs, position + match.start() * PAGE_BYTES, (match.end() - match.start()) * PAGE_BYTES)
        position += len(own) * PAGE_BYTES
    return runs


def _append(runs: list[Run], address: int, length: int) -> None:
    if runs and sum(runs[-1]) == address:
        runs[-1] = (runs[-1][0], runs[-1][1] + length)
    else:
        runs.append((address, length))


def subtract(runs: Iterable[Run], others: Iterable[Run]) -> list[Run]:
    """Return the parts of `runs` that are in none of `others`; both in order, without overlap."""
    left: list[Run] = []
    rest = iter(others)
    other = next(rest, None)
    for address, length in runs:
        end = address + length
        while address < end:
            while other is not None and sum(other) <= address:
                other = next(rest, None)
            if other is None or other[0] >= end:
                left.append((address, end - address))
                break
            if other[0] > address:
                left.append((address, other[0] - address))
            address = sum(other)
    return left


def copy_pages(
    pid: int, runs: Iterable[Run], shift: int, is_wanted: Callable[[], bool] = lambda: True
) -> int:
    """Copy `runs` of process `pid` to our own memory, each to its address plus `shift`.

    Blocks, without the interpreter lock; returns the bytes copied. Where it `is_wanted` no more, it ends
    within 64 MiB, with a part copied.

    Raises:
        OSError: the process is gone, or a page cannot be read.
    """
    return _move(_libc.process_vm_readv, pid, runs, shift, is_wanted)


def write_pages(pid: int, runs: Iterable[Run], shift: int) -> int:
    """Write `runs` of process `pid` from our own memory, each from its address plus `shift`.

    In a private mapping they become its own pages. Blocks, without the interpreter lock; returns the bytes.

    Raises:
        OSError: the process is gone, or a page cannot be written.
    """
    return _move(_libc.process_vm_writev, pid, runs, shift, lambda: True)


def _move(
    call: Callable[..., int], pid: int, runs: Iterable[Run], shift: int, is_wanted: Callable[[], bool]
) -> int:
    copied = 0
    batch: list[Run] = []
    batch_bytes = 0
    for address, length in runs:
        while length:
            part = min(length, _BYTES_PER_CALL - batch_bytes)
            batch.append((address, part))
            batch_bytes += part
            address, length = address + part, length - part
            if len(batch) == _IOV_MAX or batch_bytes == _BYTES_PER_CALL:
                if not is_wanted():
                    return copied
                copied += _move_batch(call, pid, batch, shift, batch_bytes)
                batch, batch_bytes = [], 0
    if batch:
        copied += _move_batch(call, pid, batch, shift, batch_bytes)
    return copied


def _move_batch(call: Callable[..., int], pid: int, batch: list[Run], shift: int, total: int) -> int:
    # Two arrays of struct iovec: (address, length).
    there = array("Q", chain.from_iterable(batch))
    here = array("Q", chain.from_iterable([(address + shift, length) for address, length in batch]))
    count = ctypes.c_ulong(len(batch))
    done = call(
        ctypes.c_int(pid),
        ctypes.c_void_p(here.buffer_info()[0]),
        count,
        ctypes.c_void_p(there.buffer_info()[0]),
        count,
        ctypes.c_ulong(0),
    )
    if done != total:
        number = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise OSError(number, f"memory of process {pid}: {os.strerror(number)}")
    return total
