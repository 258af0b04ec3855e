"""Files in a folder that somebody less trusted has had, such as a jailed VMM.

What it has left in the place of a file must not lead us elsewhere, as a symbolic link would, nor have us
wait, as a FIFO would. The folders above are ours alone.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def open_plain(path: str | Path, flags: int, mode: int = 0o600) -> int:
    """Return a descriptor of the regular file `path`; `flags` and `mode` are those of open(2).

    Raises:
        OSError: the kernel refuses; or something else is there: ELOOP of a symbolic link.
    """
    # Without O_NONBLOCK opening a FIFO waits; of a regular file it means nothing.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def create_plain(path: str | Path, mode: int = 0o666) -> int:
    """Return a descriptor to write to a new, empty file `path`, whatever was there before.

    Raises:
        OSError: the kernel refuses, or somebody else was quicker.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    return open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
