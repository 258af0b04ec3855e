"""Keeps Python's search for cyclic garbage short, during which the daemon answers nobody.

A whole search looks at all objects there are: 0.4 s where there are ten thousand instances, in the middle of
anything. What has survived one is set aside (`gc.freeze`), so that the next looks only at what has come
since. Objects are freed by their reference counts all the same, set aside or not; only cycles among old ones
are not found, which is made up for once in a while.
"""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

import anyio

WHOLE_INTERVAL_S: Final = 3600.0
OLDEST: Final = 2
"""The generation whose search is a whole one."""


@asynccontextmanager
async def short_searches(whole_interval_s: float = WHOLE_INTERVAL_S) -> AsyncIterator[None]:
    """Keep searches short inside, with a whole one at once and now and then."""
    gc.callbacks.append(_set_aside)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_search_whole, whole_interval_s)
            yield
            group.cancel_scope.cancel()
    finally:
        gc.callbacks.remove(_set_aside)
        gc.unfreeze()


async def _search_whole(interval_s: float) -> None:
    while True:
        gc.unfreeze()
        gc.collect()
        await anyio.sleep(interval_s)


def _set_aside(phase: Literal["start", "stop"], info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == OLDEST:
        gc.freeze()
