"""The guest's memory, read out of a running QEMU from outside.

QEMU has no command that writes RAM to a file fast; but its guest RAM is one mapping of its process, and
root may read that (process_vm_readv(2)). Content is the own pages, over the base file if the guest
is itself the child of a capture (see `ramet.linux.pagemap`).
"""

import os
from dataclasses import dataclass
from typing import Final

from ramet.linux.memfd import SealableFile
from ramet.linux.pagemap import Run, copy_pages, find_own_pages, subtract
from ramet.linux.process import read_maps
from ramet.vmm.port import VmmFailed

_CAPTURE_NAME: Final = "memfd:"


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """Where the guest's RAM lies in process `pid`; `base` is the file below a private mapping, if any."""

    pid: int
    start: int
    size_bytes: int
    base: str | None

    @property
    def end(self) -> int:
        return self.start + self.size_bytes


def find_guest_memory(pid: int, size_bytes: int) -> GuestMemory:
    """Find the one mapping of `size_bytes` bytes, anonymous or private of a capture.

    Raises:
        VmmFailed: there is none, or more than one that may be it.
    """
    found: list[GuestMemory] = []
    try:
        for start, end, permissions, path in read_maps(pid):
            if end - start != size_bytes or not permissions.startswith("rw"):
                continue
            if not path:
                found.append(GuestMemory(pid, start, size_bytes, None))
            elif _CAPTURE_NAME in path:
                found.append(GuestMemory(pid, start, size_bytes, f"/proc/{pid}/map_files/{start:x}-{end:x}"))
    except ProcessLookupError as error:
        raise VmmFailed("the VMM is gone") from error
    if len(found) != 1:
        raise VmmFailed(f"the VMM has {len(found)} mappings that may be the guest's memory", pid=pid)
    return found[0]


class Copier:
    """Copies one guest's memory into one capture, twice: while it runs and, the rest, while it stands still.

    Both calls block, without the interpreter lock. They raise OSError if the VMM is gone.
    """

    def __init__(self, guest: GuestMemory, target: SealableFile) -> None:
        assert guest.size_bytes == target.size_bytes
        self._guest, self._target = guest, target
        self._copied_ahead: list[Run] = []

    def copy_ahead(self) -> int:
        """Copy the base, which cannot change, and the own pages as they are now; returns the bytes copied."""
        guest = self._guest
        mapped, here = self._target.map_for_fill()
        copied = _copy_base(guest.base, memoryview(mapped)) if guest.base else 0
        self._copied_ahead = find_own_pages(guest.pid, guest.start, guest.end)
        return copied + copy_pages(guest.pid, self._copied_ahead, here - guest.start)

    def copy_rest(self) -> int:
        """Make the target equal to the memory of the paused guest; returns the bytes copied."""
        guest = self._guest
        mapped, here = self._target.map_for_fill()
        own = find_own_pages(guest.pid, guest.start, guest.end)
        copied = copy_pages(guest.pid, own, here - guest.start)
        # Pages given back since they were copied ahead read as the base again, or as zeros.
        for address, length in subtract(self._copied_ahead, own):
            offset = address - guest.start
            mapped[offset : offset + length] = _read_base(guest.base, offset, length)
        return copied


def _copy_base(base: str, target: memoryview) -> int:
    """Copy the data extents of the file `base` to the same offsets of `target`."""
    fd = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copied = end = 0
        while True:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError:  # ENXIO: no data from here on.
                return copied
            end = os.lseek(fd, start, os.SEEK_HOLE)
            while start < end:
                done = os.preadv(fd, [target[start:end]], start)
                start, copied = start + done, copied + done
    finally:
        target.release()
        os.close(fd)


def _read_base(base: str | None, offset: int, length: int) -> bytes:
    if base is None:
        return bytes(length)
    fd = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, length, offset).ljust(length, b"\0")
    finally:
        os.close(fd)
