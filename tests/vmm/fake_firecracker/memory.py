"""The guest's memory: really mapped, written page by page, and each page of it known by its checksum.

Where a pager serves it, a userfaultfd is registered over it and handed over in Firecracker's handshake.
"""

import array
import ctypes
import fcntl
import json
import mmap
import os
import random
import socket
import struct
import zlib
from typing import Any, Final

from ramet.vmm.fake.process import pack_memory, unpack_memory

PAGE_BYTES: Final = 4096
# linux/userfaultfd.h, asm/unistd_64.h
_SYS_USERFAULTFD: Final = 323
_USERFAULTFD_IOC_NEW: Final = 0xAA00
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFD_API: Final = 0xAA
_UFFD_FEATURE_EVENT_REMOVE: Final = 1 << 3
_UFFDIO_REGISTER_MODE_MISSING: Final = 1
_ZEROES: Final = bytes(PAGE_BYTES)


class WrongPage(Exception):
    """A page is not what it was when the snapshot was taken."""


def _open_userfaultfd() -> int:
    """Open one as Firecracker does: by its device, which takes no privilege, or else by its call.

    Raises:
        OSError: neither is there, or permitted.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        libc = ctypes.CDLL(None, use_errno=True)
        uffd: int = libc.syscall(_SYS_USERFAULTFD, flags)
        if uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd") from None
        return uffd
    try:
        return fcntl.ioctl(device, _USERFAULTFD_IOC_NEW, flags)
    finally:
        os.close(device)


class Memory:
    """One guest's memory. `sums` are of the pages as they were last stored or loaded."""

    def __init__(self, mapped: mmap.mmap, sums: list[int], keep: tuple[Any, ...] = ()) -> None:
        self._mapped, self.sums, self._keep = mapped, sums, keep

    @classmethod
    def boot(cls, size_bytes: int) -> "Memory":
        """Return memory as after a boot: every third page has something in it."""
        mapped = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(size_bytes // PAGE_BYTES // 4, size_bytes // PAGE_BYTES, 3):
            mapped[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = os.urandom(PAGE_BYTES)
        return cls(mapped, [zlib.crc32(_ZEROES)] * (size_bytes // PAGE_BYTES))

    @classmethod
    def of_file(cls, path: str, sums: list[int], offset: int | None = None) -> "Memory":
        """Map a file privately; from `offset` on, it may go on behind.

        Raises:
            OSError, ValueError: there is none, or it is too short.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size_bytes = len(sums) * PAGE_BYTES
            rest_bytes = os.fstat(fd).st_size - (offset or 0)
            if rest_bytes < size_bytes or (offset is None and rest_bytes != size_bytes):
                raise ValueError(f"the memory file has {rest_bytes} bytes, not {size_bytes}")
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            private = mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE, prot=protection, offset=offset or 0)
            return cls(private, sums)
        finally:
            os.close(fd)

    @classmethod
    def of_pager(cls, path: str, sums: list[int]) -> "Memory":
        """Map nothing, and have the pager behind socket `path` serve it.

        Raises:
            OSError: nobody is there, or there is no userfaultfd.
        """
        size_bytes = len(sums) * PAGE_BYTES
        mapped = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        uffd = _open_userfaultfd()
        fcntl.ioctl(uffd, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, _UFFD_FEATURE_EVENT_REMOVE, 0))
        area = struct.pack("QQQQ", address, size_bytes, _UFFDIO_REGISTER_MODE_MISSING, 0)
        fcntl.ioctl(uffd, _UFFDIO_REGISTER, area)
        region = {
            "base_host_virt_addr": address,
            "size": size_bytes,
            "offset": 0,
            "page_size": PAGE_BYTES,
            "page_size_kib": PAGE_BYTES,
        }
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(path)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [uffd]))
        peer.sendmsg([json.dumps([region]).encode()], [rights])
        return cls(mapped, sums, (peer, uffd))  # Both stay open, as Firecracker's do.

    def verify(self) -> None:
        """Touch every page, in random order, and check it.

        Raises:
            WrongPage
        """
        pages = list(range(len(self.sums)))
        random.shuffle(pages)
        for page in pages:
            if zlib.crc32(self._page(page)) != self.sums[page]:
                raise WrongPage(f"page {page} is not what it was")

    def content(self) -> dict[str, Any]:
        """Return what the guest remembers."""
        return unpack_memory(self._mapped)

    def remember(self, content: dict[str, Any]) -> None:
        """Have what the guest remembers be in its memory; pages that stay the same are not written."""
        packed = pack_memory(content)
        for at in range(0, len(packed), PAGE_BYTES):
            piece = packed[at : at + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
            if self._mapped[at : at + PAGE_BYTES] != piece:
                self._mapped[at : at + PAGE_BYTES] = piece

    def tell_of_snapshot(self) -> None:
        """Write a page that the guest does not: the vsock device tells its driver that connections end."""
        page = len(self.sums) // 4 - 1
        self._mapped[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = os.urandom(PAGE_BYTES)

    def store(self, path: str, *, all_pages: bool, offset: int = 0) -> None:
        """Write all pages, or those that changed since the last time, to their places in file `path`.

        They begin at `offset`, and end the file.

        Raises:
            OSError: it cannot be written.
        """
        size_bytes = len(self.sums) * PAGE_BYTES
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size != offset + size_bytes:
                os.ftruncate(fd, offset)
                os.ftruncate(fd, offset + size_bytes)
            for page in range(len(self.sums)):
                content = self._page(page)
                now = zlib.crc32(content)
                if all_pages or now != self.sums[page]:
                    os.pwrite(fd, content, offset + page * PAGE_BYTES)
                self.sums[page] = now
        finally:
            os.close(fd)

    def _page(self, page: int) -> bytes:
        return self._mapped[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
