"""A sparse file that is filled once and does not change any more: the memory of a guest at one instant.

Other processes map it privately while it is filled, and for as long as they like.
"""

import ctypes
import mmap
import os
from abc import ABC, abstractmethod


class FilledOnce(ABC):
    """An open file of bytes, writable until `seal`, open until `close`.

    Another process can open it as `path` as long as this process lives and has it open.
    """

    def __init__(self, fd: int, *, is_sealed: bool = False) -> None:
        self.fd, self.is_sealed = fd, is_sealed
        self._map: mmap.mmap | None = None

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.fd).st_size

    @property
    def resident_bytes(self) -> int:
        """Bytes that the content takes, of memory or of the disk."""
        return os.fstat(self.fd).st_blocks * 512

    def map_for_fill(self) -> tuple[mmap.mmap, int]:
        """Map the file writable; returns the mapping and its address in this process."""
        assert not self.is_sealed
        if self._map is None:
            self._map = mmap.mmap(self.fd, self.size_bytes)
        # The temporary export is dropped here, so the mapping can be closed later.
        return self._map, ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    @abstractmethod
    def seal(self) -> None:
        """End the filling. Idempotent.

        Raises:
            OSError: the kernel refuses.
        """

    def close(self) -> None:
        """Close our descriptor; who maps the file keeps it. Idempotent."""
        self._unmap()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
