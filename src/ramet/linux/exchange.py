"""Two files exchange their names, at once and for everybody: renameat2(2), RENAME_EXCHANGE.

Who has one of them open keeps it, and finds it under the other's name (proc_pid_fd(5)).
"""

import ctypes
import os
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2  # linux/fs.h
_libc: Final = ctypes.CDLL(None, use_errno=True)


def exchange_files(one: Path, other: Path) -> None:
    """Have each of two files on one file system have the name of the other.

    Raises:
        OSError: one is missing, or the file system cannot.
    """
    paths = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed), str(one), None, str(other))
