"""Keeps Python's search for cyclic garbage short, during which the daemon answers nobody.

A whole search looks at all objects there are: 0.4 s where there are ten thousand instances, in the middle of
anything. What has survived one is set aside (`gc.freeze`), so that the next looks only at what has come
since. Objects are freed by their reference counts all the same, set aside or not; only cycles among old ones
are not found, which is made up for once in a while.
"""

import gc
from typing import Final, Literal

import anyio

WHOLE_INTERVAL_S: Final = 3600.0
OLDEST: Final = 2
"""The generation whose search is a whole one."""


async def keep_searches_short(whole_interval_s: float = WHOLE_INTERVAL_S) -> None:
    """Do so until cancelled, with a whole search now and then."""
    gc.callbacks.append(_set_aside)
    try:
        while True:
            gc.unfreeze()
            gc.collect()
            await anyio.sleep(whole_interval_s)
    finally:
        gc.callbacks.remove(_set_aside)
        gc.unfreeze()


def _set_aside(phase: Literal["start", "stop"], info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == OLDEST:
        gc.freeze()
