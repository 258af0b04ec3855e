"""A file on a disk that is filled once: what a sleeping guest wakes from.

The kernel seals no file of a disk. It is made read-only, which stops all but root, and nobody here opens it
for writing again.
"""

import os
from pathlib import Path
from typing import Self

from ramet.linux.filled_once import FilledOnce

_READ_ONLY = 0o400


class StoredFile(FilledOnce):
    """A sparse file of the disk, being filled or filled already."""

    @classmethod
    def create(cls, file: Path, size_bytes: int = 0) -> Self:
        """Make `file` with `size_bytes` bytes of nothing (0: it grows as it is written).

        Raises:
            OSError: the disk refuses, or there is such a file.
        """
        stored = cls(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            if size_bytes:
                os.ftruncate(stored.fd, size_bytes)
        except OSError:
            stored.close()
            raise
        return stored

    @classmethod
    def open(cls, file: Path) -> Self:
        """Open a file that was filled.

        Raises:
            OSError: there is none.
        """
        return cls(os.open(file, os.O_RDONLY | os.O_CLOEXEC), is_sealed=True)

    def seal(self) -> None:
        if self.is_sealed:
            return
        self._unmap()
        os.fchmod(self.fd, _READ_ONLY)
        self.is_sealed = True
