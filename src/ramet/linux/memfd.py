"""A file in memory that is filled once and then cannot be changed by anybody.

Many VMMs map one captured memory privately. Some of them discard pages by punching holes into the
file they map (QEMU 7.2 does, for a balloon), which would destroy their siblings; so the file is a
memfd, sealed after the fill (memfd_create(2), F_ADD_SEALS in fcntl(2)). A private mapping made before
the seal stays valid, a shared writable one must be gone.
"""

import ctypes
import fcntl
import mmap
import os

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SealableFile:
    """A sparse memfd of `size_bytes` bytes (0: it grows as it is written), open until `close`.

    Another process can open it as `path` as long as this process lives and has it open.
    """

    def __init__(self, name: str, size_bytes: int = 0) -> None:
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._map: mmap.mmap | None = None
        self.is_sealed = False
        try:
            if size_bytes:
                os.ftruncate(self.fd, size_bytes)
        except OSError:
            os.close(self.fd)
            raise

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.fd).st_size

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory the content takes."""
        return os.fstat(self.fd).st_blocks * 512

    def map_for_fill(self) -> tuple[mmap.mmap, int]:
        """Map the file writable; returns the mapping and its address in this process."""
        assert not self.is_sealed
        if self._map is None:
            self._map = mmap.mmap(self.fd, self.size_bytes)
        # The temporary export is dropped here, so the mapping can be closed later.
        return self._map, ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def seal(self) -> None:
        """End the filling: from here on nobody, root included, changes a byte. Idempotent.

        Raises:
            OSError: somebody else holds a shared writable mapping (EBUSY).
        """
        if self.is_sealed:
            return
        self._unmap()
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self.is_sealed = True

    def close(self) -> None:
        """Close our descriptor; the memory is freed when no VMM maps it any more. Idempotent."""
        self._unmap()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
