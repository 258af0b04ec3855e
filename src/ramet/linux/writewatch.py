"""Which pages of another process were written since we last asked.

A userfaultfd(2) in its asynchronous write-protecting mode (Linux 6.7) makes the kernel itself note the first
write to each protected page: nobody is woken, the writer loses about a microsecond. The process must open the
descriptor, as it is bound to whose memory it is: a small library of ours that is loaded before all else does
that (`native/writewatch`). From then on everything is done from outside: we borrow it (pidfd_getfd(2)),
register the memory, and protect and ask by `ramet.linux.pagemap`. It stays open in the process, so a
restarted daemon finds it.
"""

import ctypes
import fcntl
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

_SYS_userfaultfd: Final = 323  # x86-64
_SYS_pidfd_getfd: Final = 438

# include/uapi/linux/userfaultfd.h
_UFFD_API: Final = 0xAA
_UFFD_USER_MODE_ONLY: Final = 1  # Allows it without privileges; asynchronous mode never asks us anyway.
_UFFD_FEATURE_PAGEFAULT_FLAG_WP: Final = 1 << 0
_UFFD_FEATURE_WP_ASYNC: Final = 1 << 15
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_REGISTER_MODE_WP: Final = 1 << 1
_FLAGS: Final = _UFFD_USER_MODE_ONLY | os.O_CLOEXEC | os.O_NONBLOCK

_LINK: Final = "anon_inode:[userfaultfd]"

_libc = ctypes.CDLL(None, use_errno=True)


def is_supported() -> bool:
    """Tell whether this kernel can note writes asynchronously."""
    fd = _libc.syscall(_SYS_userfaultfd, _FLAGS)
    if fd < 0:
        return False
    try:
        _negotiate(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def prepared(environment: Mapping[str, str], library: Path) -> dict[str, str]:
    """Return the environment with which a dynamically linked program can be watched, where the kernel can.

    Args:
        library: `libramet_writewatch.so`.
    """
    before = environment.get("LD_PRELOAD")
    return {**environment, "LD_PRELOAD": f"{library}:{before}" if before else str(library)}


class WriteWatch:
    """The watch over the memory of a process that was started `prepared`, open until `close`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def find(cls, pid: int) -> Self | None:
        """Return that of process `pid`, or None if it has none.

        Raises:
            OSError: the process is gone.
        """
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                is_found = os.readlink(entry) == _LINK
            except FileNotFoundError:
                continue  # Closed while we looked.
            if is_found:
                return cls(_borrow(pid, int(entry.name)))
        return None

    def register(self, start: int, end: int) -> None:
        """Watch the mapping from address `start` to `end`, of which nothing is protected yet. Idempotent.

        Raises:
            OSError: there is no such mapping.
        """
        wanted = struct.pack("4Q", start, end - start, _UFFDIO_REGISTER_MODE_WP, 0)
        fcntl.ioctl(self._fd, _UFFDIO_REGISTER, bytearray(wanted))

    def close(self) -> None:
        """Let go of it; what is protected stays so, and is noted. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _negotiate(fd: int) -> None:
    features = _UFFD_FEATURE_WP_ASYNC | _UFFD_FEATURE_PAGEFAULT_FLAG_WP
    fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("3Q", _UFFD_API, features, 0)))


def _borrow(pid: int, number: int) -> int:
    """Return a descriptor of ours for what is descriptor `number` of process `pid`."""
    pidfd = os.pidfd_open(pid)
    try:
        fd: int = _libc.syscall(_SYS_pidfd_getfd, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"descriptor {number} of process {pid}: {os.strerror(error)}")
    return fd
