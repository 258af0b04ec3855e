"""A process that writes, reads and gives back pages when told."""

import os
import subprocess
import sys

from ramet.boot.locate import WRITEWATCH_LIBRARY, native_program
from ramet.linux.pagemap import PAGE_BYTES, Run, find_own_pages, find_written_pages
from ramet.linux.writewatch import WriteWatch, prepared

PAGE_COUNT = 4096

_WRITER = f"""
import ctypes, mmap, sys
fd = int(sys.argv[1])
flags = mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
area = mmap.mmap(fd, {PAGE_COUNT * PAGE_BYTES}, flags=flags)
area.madvise(int(sys.argv[2]))
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
for line in sys.stdin:
    what, *pages = line.split()
    for page in map(int, pages):
        if what == "write":
            area[page * {PAGE_BYTES}] = (area[page * {PAGE_BYTES}] + 1) % 256
        elif what == "read":
            area[page * {PAGE_BYTES}]
        else:
            area.madvise(mmap.MADV_DONTNEED, page * {PAGE_BYTES}, {PAGE_BYTES})
    print("done", flush=True)
"""


class Writer:
    """A process with one mapping of PAGE_COUNT pages, anonymous or private of a file."""

    def __init__(self, base_fd: int | None, advice: int, *, is_watchable: bool = False) -> None:
        library = native_program(WRITEWATCH_LIBRARY)
        fd = -1 if base_fd is None else base_fd
        self.has_file = base_fd is not None
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(fd), str(advice)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=() if base_fd is None else (fd,),
            env=prepared(os.environ, library) if is_watchable else None,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self.start = int(self._process.stdout.readline())
        self.end = self.start + PAGE_COUNT * PAGE_BYTES

    def do(self, what: str, *pages: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join([what, *map(str, pages)]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def watch(self) -> None:
        watch = WriteWatch.find(self.pid)
        assert watch is not None
        watch.register(self.start, self.end)
        watch.close()

    def own(self, *, protect: bool = False) -> set[int]:
        return self._pages(
            find_own_pages(self.pid, self.start, self.end, has_file=self.has_file, protect=protect)
        )

    def written(self, *, protect: bool = False) -> set[int]:
        return self._pages(
            find_written_pages(self.pid, self.start, self.end, has_file=self.has_file, protect=protect)
        )

    def _pages(self, runs: list[Run]) -> set[int]:
        return {
            page
            for address, length in runs
            for page in range(
                (address - self.start) // PAGE_BYTES, (address + length - self.start) // PAGE_BYTES
            )
        }

    def close(self) -> None:
        self._process.communicate()
