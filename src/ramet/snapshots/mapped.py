"""Captures in memory whose daemon is gone: a VMM that maps one keeps it."""

from ramet.linux.process import mapped_memfds
from ramet.vmm.port import MEMORY_FILE_NAME


def mapped_captures(pid: int) -> dict[str, int]:
    """Return what captures in memory a VMM maps: a name, the same for each VMM, to the bytes mapped.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return mapped_memfds(pid, MEMORY_FILE_NAME)
