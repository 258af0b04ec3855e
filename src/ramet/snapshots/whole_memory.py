"""Stored memory as a whole, also where it is stored as a difference: changed pages over an earlier instant.

```
ramet-memory     the whole, or the whole of an earlier instant, which other captures may share
changes          the pages that changed since, each at its place in the memory
```

Which pages those are is told by who stored them, never by where that file has holes: a file system may have
larger blocks than a page.
"""

import heapq
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ramet.linux.pagemap import PAGE_BYTES, PageRuns, subtract
from ramet.linux.sparse import Run, data_runs

CHANGES_FILE: Final = "changes"


def whole_runs(memory_fd: int, changes_fd: int | None, changes: PageRuns | None) -> Iterator[Run]:
    """Yield where the data of the whole lies, in order, the same each time while nobody compresses it.

    Raises:
        OSError: the file system cannot tell.
    """
    if changes is None or changes_fd is None:
        yield from data_runs(memory_fd, PAGE_BYTES)
        return
    below = [(run.offset, run.length_bytes) for run in data_runs(memory_fd, PAGE_BYTES)]
    parts = heapq.merge(
        ((offset, length, memory_fd) for offset, length in subtract(below, changes)),
        ((offset, length, changes_fd) for offset, length in changes),
    )
    for offset, length_bytes, fd in parts:
        yield Run(offset, length_bytes, fd, offset)


@contextmanager
def open_whole(memory: Path, changes: PageRuns | None) -> Iterator[Iterator[Run]]:
    """Have what `whole_runs` yields of the file `memory`, and of that of the changes beside it, inside.

    Raises:
        OSError: one cannot be read.
    """
    with ExitStack() as stack:
        memory_fd = stack.enter_context(memory.open("rb", buffering=0)).fileno()
        changes_fd = None
        if changes is not None:
            over = memory.with_name(CHANGES_FILE)
            changes_fd = stack.enter_context(over.open("rb", buffering=0)).fileno()
        yield whole_runs(memory_fd, changes_fd, changes)
