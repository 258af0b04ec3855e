"""What a VMM does with its pager, as a program: it maps memory, hands it over, and touches it.

Run as `python vmm.py SOCKET`; each line on standard input is a call of one of the methods below, as JSON
`[name, {arguments}]`, and is answered by one line of JSON. Memory is touched through libc, which lets other
threads run meanwhile: a thread that faults sleeps until the pager answers.
"""

import array
import base64
import concurrent.futures
import ctypes
import fcntl
import json
import os
import random
import socket
import struct
import sys

# linux/userfaultfd.h, asm/unistd_64.h, linux/mman.h
SYS_USERFAULTFD = 323
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFD_API = 0xAA
UFFD_FEATURE_EVENT_FORK = 1 << 1
UFFD_FEATURE_EVENT_REMOVE = 1 << 3
UFFD_FEATURE_EVENT_UNMAP = 1 << 6
UFFDIO_REGISTER_MODE_MISSING = 1
PROT_READ_WRITE = 3
MAP_PRIVATE_ANONYMOUS = 0x22
MADV_DONTNEED = 4
PAGE_BYTES = 4096

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
libc.memcpy.restype = ctypes.c_void_p


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Vmm:
    """One VMM with one piece of memory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.address = 0
        self.uffd = -1
        self.connection = socket.socket(socket.AF_UNIX)

    def map(self, size: int) -> None:
        """Map `size` bytes and register them, with a hole of one unmapped page behind."""
        address = libc.mmap(None, size, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
        assert address not in (None, ctypes.c_void_p(-1).value)
        self.address = address
        self.uffd = check(libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK))
        features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_FORK
        fcntl.ioctl(self.uffd, UFFDIO_API, struct.pack("QQQ", UFFD_API, features, 0))
        area = struct.pack("QQQQ", self.address, size, UFFDIO_REGISTER_MODE_MISSING, 0)
        fcntl.ioctl(self.uffd, UFFDIO_REGISTER, area)

    def connect(self) -> None:
        self.connection.connect(self.path)

    def greet(self, mappings: list[list[int]], pieces: int = 1) -> None:
        """Tell of mappings, each [where in our memory, size, where in the base], and send the descriptor."""
        text = json.dumps(
            [
                {
                    "base_host_virt_addr": self.address + at,
                    "size": size,
                    "offset": offset,
                    "page_size": PAGE_BYTES,
                    "page_size_kib": PAGE_BYTES,
                }
                for at, size, offset in mappings
            ]
        ).encode()
        step = -(-len(text) // pieces)
        self.connect()
        self._send(text[:step], [self.uffd])
        for start in range(step, len(text), step):
            self.connection.sendall(text[start : start + step])

    def greet_badly(self, text: str, descriptors: list[str]) -> None:
        """Send any text, with descriptors named "uffd", "null" or "pipe"; {start} stands for our memory."""
        known = {"uffd": self.uffd, "null": os.open("/dev/null", os.O_RDONLY), "pipe": os.pipe()[0]}
        fds = [known[name] for name in descriptors]
        self.connect()
        self._send(text.replace("{start}", str(self.address)).encode(), fds)

    def _send(self, data: bytes, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.connection.sendmsg([data], rights)

    def read(self, at: int, size: int) -> str:
        """Return the bytes at `at` as base64."""
        target = ctypes.create_string_buffer(size)
        libc.memcpy(target, self.address + at, size)
        return base64.b64encode(target.raw).decode()

    def write(self, at: int, data: str) -> None:
        content = base64.b64decode(data)
        libc.memcpy(self.address + at, content, len(content))

    def touch(self, page_count: int, threads: int, seed: int) -> None:
        """Read one byte of each of the first pages, in any order, from several threads at once."""
        pages = list(range(page_count))
        random.Random(seed).shuffle(pages)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda page: self.read(page * PAGE_BYTES, 1), pages):
                pass

    def touch_pages(self, pages: list[int]) -> None:
        """Read one byte of each."""
        for page in pages:
            self.read(page * PAGE_BYTES, 1)

    def present(self, page_count: int) -> list[int]:
        """Return which of the first pages are there, without touching them."""
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            entries = os.pread(pagemap.fileno(), page_count * 8, self.address // PAGE_BYTES * 8)
        return [page for page, (entry,) in enumerate(struct.iter_unpack("Q", entries)) if entry >> 63]

    def remove(self, at: int, size: int) -> None:
        """Give pages back; they read as zeroes from now on."""
        check(libc.madvise(self.address + at, size, MADV_DONTNEED))

    def unmap(self, at: int, size: int) -> None:
        check(libc.munmap(self.address + at, size))

    def churn(self, page_count: int, rounds: int) -> list[int]:
        """Remove pages from one thread while others read them; return the pages in which something was
        neither removed nor the base's, where page n of the base holds byte n % 251 + 1 throughout."""
        bad = set()

        def read_all(seed: int) -> None:
            for _ in range(rounds):
                pages = list(range(page_count))
                random.Random(seed).shuffle(pages)
                for page in pages:
                    content = base64.b64decode(self.read(page * PAGE_BYTES, PAGE_BYTES))
                    if not set(content) <= {0, page % 251 + 1}:  # It may go while it is being read.
                        bad.add(page)

        def remove_all() -> None:
            for _ in range(rounds):
                for page in range(0, page_count, 2):
                    self.remove(page * PAGE_BYTES, PAGE_BYTES)

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(read_all, 1), pool.submit(read_all, 2), pool.submit(remove_all)]:
                done.result()
        return sorted(bad)

    def clear_nonblocking(self) -> None:
        flags = fcntl.fcntl(self.uffd, fcntl.F_GETFL)
        fcntl.fcntl(self.uffd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)

    def fork(self) -> None:
        if os.fork() == 0:
            os._exit(0)

    def wait_hung_up(self) -> bool:
        """Wait until the pager ends the connection."""
        try:
            return self.connection.recv(1) == b""
        except ConnectionResetError:  # It left something unread.
            return True


def main() -> None:
    vmm = Vmm(sys.argv[1])
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(vmm, name)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
