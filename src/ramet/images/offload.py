"""Long work in a thread that ends when its task is cancelled.

A thread cannot be interrupted, and a task that leaves one behind would remove files that are still being
written. So the work asks now and then whether it should stop, and a cancelled task waits until it has.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


class Stopped(Exception):  # Never leaves this package; no error either.
    """The task that this work is for has been cancelled."""


async def run_stoppable(work: Callable[[Callable[[], None]], T]) -> T:
    """Run `work(check)` in a thread and return its result.

    `check` raises `Stopped` once the calling task is cancelled; `work` calls it often and lets that pass.
    The cancellation is delivered here only after the thread has ended.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    future = asyncio.get_running_loop().run_in_executor(None, work, check)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        with anyio.CancelScope(shield=True):
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue  # Asked again, by other means than a scope; the answer is the same.
        if not future.cancelled():
            future.exception()  # Seen; the cancellation says more.
        raise
