"""A file in memory that is filled once and then cannot be changed by anybody.

Many VMMs map one captured memory privately. Some of them discard pages by punching holes into the
file they map (QEMU 7.2 does, for a balloon), which would destroy their siblings; so the file is a
memfd, sealed after the fill (memfd_create(2), F_ADD_SEALS in fcntl(2)). A private mapping made before
the seal stays valid, a shared writable one must be gone.
"""

import fcntl
import os

from ramet.linux.filled_once import FilledOnce

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SealableFile(FilledOnce):
    """A sparse memfd of `size_bytes` bytes (0: it grows as it is written).

    Its memory is freed when nobody has it open or maps it any more.
    """

    def __init__(self, name: str, size_bytes: int = 0) -> None:
        super().__init__(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            if size_bytes:
                os.ftruncate(self.fd, size_bytes)
        except OSError:
            self.close()
            raise

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
