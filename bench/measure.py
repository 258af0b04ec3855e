"""What processes use, as the kernel tells it. Sizes in bytes, times in seconds."""

import ctypes
import mmap
import os
import re
import statistics
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
COPY_COUNT: Final = 5


def cpu_s(pid: int) -> float:
    """Return the processor time of a process without its children."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def vmm_pids(instances: Collection[str]) -> list[int]:
    """Return the VMMs of these instances."""
    found = []
    for entry in PROC.glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(f"guest=ramet-{instance}".encode() in line for instance in instances):
            found.append(int(entry.name))
    return found


def guest_ram_anonymous_bytes(pid: int, memory_bytes: int) -> int:
    """Return how much of a guest's memory is its VMM's own, and not shared with the capture."""
    return _of_guest_ram(pid, memory_bytes, "Anonymous")


def resident_bytes(pid: int, memory_bytes: int) -> int:
    """Return how much of a guest's memory is there."""
    return _of_guest_ram(pid, memory_bytes, "Rss")


def private_bytes(pid: int) -> int:
    """Return what a process has written, and so shares with nobody.

    What it only reads of a file is left out: whether it is the only reader says nothing about it.
    """
    text = (PROC / str(pid) / "smaps_rollup").read_text()
    found = re.search(r"^Private_Dirty: +(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def memcpy_s(size_bytes: int) -> float:
    """Return the median time of copying so much between two buffers that are there already."""
    with mmap.mmap(-1, size_bytes) as source, mmap.mmap(-1, size_bytes) as target:
        took_s = []
        for buffer in (source, target):
            buffer.write(b"\1" * size_bytes)
        there, here = (ctypes.c_char.from_buffer(buffer) for buffer in (target, source))
        for _ in range(COPY_COUNT):
            began = time.perf_counter()
            ctypes.memmove(ctypes.addressof(there), ctypes.addressof(here), size_bytes)
            took_s.append(time.perf_counter() - began)
        del there, here  # Buffers that are looked into cannot be closed.
    return statistics.median(took_s)


def _of_guest_ram(pid: int, memory_bytes: int, name: str) -> int:
    """Return a field of smaps for the mapping that is as large as the guest's memory."""
    text = (PROC / str(pid) / "smaps").read_text()
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)[1:]:
        start, _, end = mapping.split(" ", 1)[0].partition("-")
        if int(end, 16) - int(start, 16) == memory_bytes:
            found = re.search(rf"^{name}: +(\d+) kB", mapping, re.MULTILINE)
            assert found is not None
            return int(found[1]) << 10
    raise AssertionError(f"process {pid} has no mapping of {memory_bytes} bytes")
