"""Waiting for what comes by itself."""

from collections.abc import Callable

import anyio
import anyio.lowlevel

TIMEOUT_S = 60.0


async def until(is_so: Callable[[], object]) -> None:
    """Return when something is so; fails if that takes too long."""
    with anyio.fail_after(TIMEOUT_S):
        while not is_so():
            await anyio.lowlevel.checkpoint()
