"""Python's search for cyclic garbage is short in the daemon, and finds what is old in the end."""

import gc
import weakref

import anyio
import anyio.lowlevel
import pytest

from ramet.daemon.garbage import short_searches

TIMEOUT_S = 30.0

pytestmark = pytest.mark.anyio


class Node:
    """May refer to itself."""

    other: "Node | None" = None


def cycle() -> Node:
    node = Node()
    node.other = node
    return node


async def test_what_survived_a_whole_search_is_not_looked_at_again() -> None:
    async with short_searches():
        await anyio.wait_all_tasks_blocked()
        assert gc.get_freeze_count() > 0
        kept = cycle()
        gone = weakref.ref(kept)
        gc.collect()
        del kept
        young = weakref.ref(cycle())
        gc.collect()
        assert gone() is not None
        assert young() is None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gone() is None


async def test_old_cycles_are_found_by_the_next_whole_search() -> None:
    async with short_searches(0.01):
        await anyio.wait_all_tasks_blocked()
        kept = cycle()
        gone = weakref.ref(kept)
        gc.collect()
        del kept
        with anyio.fail_after(TIMEOUT_S):
            while gone() is not None:
                await anyio.lowlevel.checkpoint()
