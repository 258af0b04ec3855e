"""Files that a VMM opens itself: its log, its metrics, its guest's console.

It does so without O_APPEND and would go on writing where it was when somebody else cuts them to nothing,
behind a hole as long as what was cut. So O_APPEND is set from outside, on the descriptor that it has
(pidfd_getfd(2) shares the open file, and fcntl(2) F_SETFL is of the open file).
"""

import ctypes
import fcntl
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

_SYS_pidfd_getfd: Final = 438  # asm/unistd_64.h
_libc = ctypes.CDLL(None, use_errno=True)


def append_only(pid: int, files: Collection[Path]) -> None:
    """Have `pid`, which is held and so not another by now, append to those of `files` that it has open.

    Raises:
        OSError: the process is gone, or not ours to look into.
    """
    wanted = {(found.st_dev, found.st_ino) for found in (path.stat() for path in files)}
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                found = os.stat(f"/proc/{pid}/fd/{name}")
                if (found.st_dev, found.st_ino) in wanted:
                    _set_append(pidfd, int(name))
    finally:
        os.close(pidfd)


def _set_append(pidfd: int, number: int) -> None:
    fd = _libc.syscall(_SYS_pidfd_getfd, pidfd, number, 0)
    if fd < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    finally:
        os.close(fd)
