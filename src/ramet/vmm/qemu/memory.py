"""The guest's memory, read out of a running QEMU from outside.

QEMU has no command that writes RAM to a file fast; but its guest RAM is one mapping of its process, and
root may read that (process_vm_readv(2)). Content is the own pages, over the base file if the guest
is itself the child of a capture (see `ramet.linux.pagemap`).
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ramet.linux.filled_once import FilledOnce
from ramet.linux.pagemap import (
    PageRuns,
    Run,
    copy_pages,
    find_own_and_changed_pages,
    find_own_pages,
    find_written_pages,
    subtract,
    write_pages,
)
from ramet.linux.process import read_maps
from ramet.linux.writewatch import WriteWatch
from ramet.vmm.port import MEMORY_FILE_NAME, VmmFailed

CATCH_UP_BYTES: Final = 1 << 20
"""So little is copied in the pause: some 0.2 ms."""
COPY_BYTES: Final = 64 << 20
"""How much is copied between two looks whether it is still wanted."""
DIFFERENCE_RATIO_MAX: Final = 0.25
"""What differs from the base by more of its bytes than this is stored as a whole: a wake would pay for it."""
CATCH_UP_ROUNDS_MAX: Final = 8
"""A guest that writes faster than it can be copied is not waited for."""


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

    def watch_writes(self) -> bool:
        """Have writes be noted where `protect` says so; tells whether they can be."""
        watch = WriteWatch.find(self.pid)
        if watch is None:
            return False
        try:
            watch.register(self.start, self.end)
        finally:
            watch.close()
        return True

    def stands_on(self, base: FilledOnce) -> bool:
        """Tell whether the file below the mapping is `base`."""
        return self.base is not None and os.path.samestat(os.stat(self.base), os.fstat(base.fd))

    def find_own_pages(self, *, protect: bool = False) -> list[Run]:
        return find_own_pages(self.pid, self.start, self.end, has_file=self.base is not None, protect=protect)

    def protect_written_pages(self) -> list[Run]:
        return find_written_pages(
            self.pid, self.start, self.end, has_file=self.base is not None, protect=True
        )

    def find_own_and_changed_pages(self) -> tuple[list[Run], list[Run]]:
        return find_own_and_changed_pages(self.pid, self.start, self.end, has_file=self.base is not None)


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
            elif MEMORY_FILE_NAME in path:
                found.append(GuestMemory(pid, start, size_bytes, f"/proc/{pid}/map_files/{start:x}-{end:x}"))
    except ProcessLookupError as error:
        raise VmmFailed("the VMM is gone") from error
    if len(found) != 1:
        raise VmmFailed(f"the VMM has {len(found)} mappings that may be the guest's memory", pid=pid)
    return found[0]


class Copier:
    """Copies one guest's memory into one capture: while it runs and, the rest, while it stands still.

    Where writes can be noted (`ramet.linux.writewatch`), the rest is what was written since it was last
    copied, otherwise all of it. Calls block, without the interpreter lock; OSError if the VMM is gone.

    Of a guest that stands on `base` only its own pages are copied, unless they are too many; `changes` says
    which they are, once all is copied.
    """

    def __init__(self, guest: GuestMemory, target: FilledOnce, base: FilledOnce | None = None) -> None:
        assert guest.size_bytes == target.size_bytes
        self._guest, self._target, self._known_base = guest, target, base
        self._is_difference = False
        self.changes: PageRuns | None = None
        self._copied: list[list[Run]] = []
        self.is_watched = False
        self._is_wanted = True

    def give_up(self) -> None:
        """Have a call that is under way in another thread end soon; what it copied is of no use."""
        self._is_wanted = False

    def copy_ahead(self) -> int:
        """Copy the base, which cannot change, and the own pages as they are now; returns the bytes copied."""
        guest = self._guest
        mapped, here = self._target.map_for_fill()
        self.is_watched = guest.watch_writes()
        own = guest.find_own_pages(protect=self.is_watched)
        self._is_difference = self._is_little(own)
        copied = 0
        if guest.base and not self._is_difference:
            copied = _copy_base(guest.base, memoryview(mapped), self._goes_on)
        self._copied = [own]
        return copied + copy_pages(guest.pid, own, here - guest.start, self._goes_on)

    def _is_little(self, own: list[Run]) -> bool:
        base = self._known_base
        if base is None or not self._guest.stands_on(base):
            return False
        return sum(length for _, length in own) <= base.resident_bytes * DIFFERENCE_RATIO_MAX

    def _goes_on(self) -> bool:
        return self._is_wanted

    def catch_up(self) -> int:
        """Copy what was written since, again and again until that is little; returns the bytes copied."""
        guest = self._guest
        _, here = self._target.map_for_fill()
        copied, latest = 0, CATCH_UP_BYTES + 1
        for _ in range(CATCH_UP_ROUNDS_MAX if self.is_watched else 0):
            if latest <= CATCH_UP_BYTES:
                break
            written = guest.protect_written_pages()
            self._copied.append(written)
            latest = copy_pages(guest.pid, written, here - guest.start, self._goes_on)
            copied += latest
        return copied

    def copy_rest(self) -> int:
        """Make the target equal to the memory of the paused guest; returns the bytes copied."""
        guest = self._guest
        mapped, here = self._target.map_for_fill()
        if self.is_watched:
            own, changed = guest.find_own_and_changed_pages()
        else:
            own = changed = guest.find_own_pages()
        copied = copy_pages(guest.pid, changed, here - guest.start, self._goes_on)
        if self._is_difference:
            self.changes = tuple((address - guest.start, length) for address, length in own)
            return copied
        # Pages given back since they were copied read as the base again, or as zeros.
        for runs in self._copied:
            for address, length in subtract(runs, own):
                offset = address - guest.start
                mapped[offset : offset + length] = _read_base(guest.base, offset, length)
        return copied


def lay_over(guest: GuestMemory, changes: FilledOnce, runs: PageRuns) -> int:
    """Write the pages of `changes` that `runs` tells over the memory of a guest; returns the bytes.

    Raises:
        OSError: the VMM is gone.
    """
    with mmap.mmap(changes.fd, changes.size_bytes, flags=mmap.MAP_PRIVATE) as mapped:
        # The temporary export is dropped here, so the mapping can be closed.
        here = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        there = ((guest.start + offset, length) for offset, length in runs)
        return write_pages(guest.pid, there, here - guest.start)


def _copy_base(base: str, target: memoryview, is_wanted: Callable[[], bool]) -> int:
    """Copy the data extents of the file `base` to the same offsets of `target`, while it `is_wanted`."""
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
                if not is_wanted():
                    return copied
                done = os.preadv(fd, [target[start : min(end, start + COPY_BYTES)]], start)
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
