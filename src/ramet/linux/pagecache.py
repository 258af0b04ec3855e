"""How much of a file the kernel has in memory: what a private mapping of it costs nothing to read."""

import ctypes
import errno
import mmap
import os
from typing import Final

_SYS_cachestat: Final = 451  # asm/unistd_64.h, Linux 6.5
_libc = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("nr_cache", "nr_dirty", "nr_writeback", "nr_evicted", "nr_recently_evicted")
    )


def read_cached_bytes(fd: int) -> int:
    """Return how many bytes of an open file are in the page cache, holes not counted.

    By cachestat(2), or mincore(2) where the kernel has no such call yet.

    Raises:
        OSError: this is no file that has any.
    """
    told = _Cachestat()
    # A length of zero is to the end of the file.
    if _libc.syscall(_SYS_cachestat, fd, ctypes.byref(_Range(0, 0)), ctypes.byref(told), 0) == 0:
        return int(told.nr_cache) * mmap.PAGESIZE
    failed = ctypes.get_errno()
    if failed != errno.ENOSYS:
        raise OSError(failed, os.strerror(failed))
    return _count_resident(fd)


def _count_resident(fd: int) -> int:
    size_bytes = os.fstat(fd).st_size
    if size_bytes == 0:
        return 0
    page_count = -(-size_bytes // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * page_count)()
    # Private and writable for ctypes' sake: nothing is written.
    with mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        address = ctypes.c_char.from_buffer(mapped)
        failed = _libc.mincore(ctypes.byref(address), ctypes.c_size_t(size_bytes), states)
        del address
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return sum(state & 1 for state in states) * mmap.PAGESIZE
