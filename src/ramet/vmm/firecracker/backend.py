"""Who fills a loaded guest's memory: the kernel, from the file that is mapped, or the pager.

A page of a mapped file that is in the page cache takes 0.05 to 0.5 us to read, one from the pager 3 us and
more. So the file is the default; the pager earns its place where the file cannot be mapped as it is, or must
come from a disk, which it reads in windows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

CACHED_RATIO_ENOUGH: Final = 0.9
"""Of a memory file's data: with so much of it in the page cache it is mapped."""


class Backend(StrEnum):
    """As `hypervisor.firecracker_snapshot_memory_backend` names them."""

    FILE = "file"
    UFFD = "uffd"


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """What is known of a memory that is about to be loaded.

    Attributes:
        cached_ratio: how much of the file's data is in the page cache.
        is_packed: it is stored packed and cannot be mapped.
        is_overlaid: some of its pages lie in other files.
        is_first: this instance was not started or loaded before. Later restores are from a file that it wrote
            itself, and which is its own.
    """

    cached_ratio: float
    is_packed: bool = False
    is_overlaid: bool = False
    is_first: bool = True


Choice = Callable[[MemoryFacts], Backend]


def choose_backend(facts: MemoryFacts) -> Backend:
    """Return who is to fill that memory, where a pager is there to be asked."""
    if facts.is_packed or facts.is_overlaid:
        return Backend.UFFD
    if not facts.is_first or facts.cached_ratio >= CACHED_RATIO_ENOUGH:
        return Backend.FILE
    return Backend.UFFD
