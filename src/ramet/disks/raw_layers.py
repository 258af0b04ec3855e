"""Layers for a VMM that knows raw disks only: each is a whole disk, or still empty.

A new one is an empty file beside a link to what it is to become a copy of; the driver of its VMM makes the
copy, beside and renamed, before the guest writes. From then on it needs nothing below it.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramet.disks.qcow2 import CLUSTER_BYTES

RAW_SUFFIX: Final = ".raw"
BELOW_SUFFIX: Final = ".below"


def create_raw(path: Path, below: Path) -> None:
    """Make an empty layer that is to be a copy of `below`, which lies in the same folder.

    Raises:
        OSError: the file system refuses, or there is such a layer; nothing is left of it.
    """
    link = path.with_suffix(BELOW_SUFFIX)
    link.symlink_to(below.name)  # First: a layer without one would be taken for damaged.
    try:
        path.touch(mode=0o600, exist_ok=False)
    except OSError:
        with suppress(OSError):  # The next start's sweep finds it.
            link.unlink()
        raise


def is_whole(path: Path) -> bool:
    """Tell whether a raw layer has become a disk. False, too, where there is none."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def read_below(path: Path) -> Path | None:
    """Return what a raw layer is to be, or was made, a copy of; None if nobody can tell, or needs to."""
    try:
        return path.with_name(os.readlink(path.with_suffix(BELOW_SUFFIX)))
    except OSError:
        return None


def forget_below(path: Path) -> None:
    """Have a whole layer, or none at all, be a copy of nothing. Never fails: a link left behind is swept."""
    with suppress(OSError):
        path.with_suffix(BELOW_SUFFIX).unlink(missing_ok=True)


class RawWriter:
    """A new raw file for a whole disk of `size_bytes`. Whole when `finish` returns; open until `close`.

    Raises, on construction:
        OSError: the file system refuses, or there is such a file.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, offset: int, data: bytes) -> None:
        """Write whole clusters, or up to the end of the disk, that were not written yet.

        Raises:
            OSError: the disk is full.
        """
        assert offset % CLUSTER_BYTES == 0, "it begins with a cluster"
        assert offset + len(data) <= self._size_bytes, "it is within the disk"
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def finish(self) -> None:
        """Have the file as long as the disk, and durable.

        Raises:
            OSError: the disk is full, or failing.
        """
        os.ftruncate(self._fd, self._size_bytes)
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
