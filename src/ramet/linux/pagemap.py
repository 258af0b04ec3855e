"""Which pages of another process are its own, and copying them.

A page is *own* when it is anonymous: present or swapped, and not of a file. In an anonymous mapping those
are all pages ever touched; in a private mapping of a file, exactly those that differ from the file. So
"the own pages, over the file if there is one" is the content of either.

PAGEMAP_SCAN (Linux 6.7) tells the runs in 0.1 ms; before that /proc/PID/pagemap is read and searched at C
speed (Documentation/admin-guide/mm/pagemap.rst).
"""

import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterable
from typing import Final

PAGE_BYTES: Final = 4096

# include/uapi/linux/fs.h
PAGEMAP_SCAN: Final = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), 96 bytes.
PAGE_IS_FILE: Final = 1 << 2
PAGE_IS_PRESENT: Final = 1 << 3
PAGE_IS_SWAPPED: Final = 1 << 4

_REGION_COUNT: Final = 8192
_IOV_MAX: Final = 1024  # limits.h; process_vm_readv(2) takes no more at once.
_BYTES_PER_CALL: Final = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)

Run = tuple[int, int]
"""A run of pages: (address, length), both in bytes and multiples of PAGE_BYTES."""


class _PageRegion(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def find_own_pages(pid: int, start: int, end: int) -> list[Run]:
    """Return the runs of own pages of `pid` from address `start` to `end`, in order.

    Raises:
        OSError: the process is gone, or not ours to look at.
    """
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            return _scan(fd, start, end)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
        return _read_pagemap(fd, start, end)
    finally:
        os.close(fd)


def _scan(fd: int, start: int, end: int) -> list[Run]:
    regions = (_PageRegion * _REGION_COUNT)()
    runs: list[Run] = []
    position = start
    while position < end:
        argument = bytearray(
            struct.pack(
                "12Q",
                96,
                0,
                position,
                end,
                0,
                ctypes.addressof(regions),
                _REGION_COUNT,
                0,
                PAGE_IS_FILE,  # Inverted ...
                PAGE_IS_FILE,  # ... and demanded: not of a file.
                PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                PAGE_IS_PRESENT,
            )
        )
        found = fcntl.ioctl(fd, PAGEMAP_SCAN, argument)
        for region in regions[:found]:
            _append(runs, region.start, region.end - region.start)
        if found < _REGION_COUNT:
            break
        # Not `walk_end`: 6.18 was seen to report a place before the last region there.
        position = regions[found - 1].end
    return runs


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


def copy_pages(pid: int, runs: Iterable[Run], shift: int) -> int:
    """Copy `runs` of process `pid` to our own memory, each to its address plus `shift`.

    Blocks, without the interpreter lock; returns the bytes copied.

    Raises:
        OSError: the process is gone, or a page cannot be read.
    """
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
                copied += _copy_batch(pid, batch, shift, batch_bytes)
                batch, batch_bytes = [], 0
    if batch:
        copied += _copy_batch(pid, batch, shift, batch_bytes)
    return copied


def _copy_batch(pid: int, batch: list[Run], shift: int, total: int) -> int:
    count = len(batch)
    there = (_Iovec * count)(*(_Iovec(address, length) for address, length in batch))
    here = (_Iovec * count)(*(_Iovec(address + shift, length) for address, length in batch))
    size = ctypes.c_ulong(count)
    done = _libc.process_vm_readv(ctypes.c_int(pid), here, size, there, size, ctypes.c_ulong(0))
    if done != total:
        number = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise OSError(number, f"process_vm_readv: {os.strerror(number)}")
    return total
