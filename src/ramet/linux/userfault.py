"""Whose memory is filled by somebody else: userfaultfd(2), seen from outside."""

import re
from pathlib import Path

_MISSING_IS_TOLD = re.compile(rb"^VmFlags:.* um\b", re.MULTILINE)


def awaits_pages(pid: int) -> bool:
    """Tell whether a process's threads sleep until somebody answers, when they touch what is not there.

    That stays so when whoever should answer is gone: they sleep for ever then. Reads all of the memory map.

    Raises:
        OSError: the process is gone, or not ours to look at.
    """
    return _MISSING_IS_TOLD.search(Path(f"/proc/{pid}/smaps").read_bytes()) is not None
