"""A file with the content of another: by sharing its blocks where the file system can, else by copying.

ioctl_ficlone(2): Btrfs and XFS share blocks, ext4 does not. A copy leaves holes out.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from ramet.linux.sparse import data_runs

FICLONE: Final = 0x40049409
_CANNOT_SHARE: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)
_BLOCK_BYTES: Final = 4096
_PART_SUFFIX: Final = ".part"


def clone_file(source: Path, target: Path) -> bool:
    """Have `target` be a file with the content of `source`, whole or not at all.

    Tells whether they share blocks. Waits while it copies: call it in a thread.

    Raises:
        OSError: there is no room, or one of them cannot be reached.
    """
    part = target.with_name(target.name + _PART_SUFFIX)
    from_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        to_fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            shares = _share(from_fd, to_fd)
            if not shares:
                _copy(from_fd, to_fd)
        finally:
            os.close(to_fd)
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(from_fd)
    return shares


def _share(from_fd: int, to_fd: int) -> bool:
    try:
        fcntl.ioctl(to_fd, FICLONE, from_fd)
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
        return False
    return True


def _copy(from_fd: int, to_fd: int) -> None:
    os.ftruncate(to_fd, os.fstat(from_fd).st_size)
    for run in data_runs(from_fd, _BLOCK_BYTES):
        at, end = run.offset, run.offset + run.length_bytes
        while at < end:
            copied = os.copy_file_range(from_fd, to_fd, end - at, at, at)
            if not copied:
                raise OSError(errno.EIO, "the file was cut short while it was copied")
            at += copied
