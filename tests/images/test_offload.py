"""Work in a thread ends with its task."""

import asyncio
from collections.abc import Callable

import anyio
import pytest

from ramet.images.offload import Stopped, run_stoppable

pytestmark = pytest.mark.anyio

CHECK_COUNT = 20_000_000  # Far more than are made before the cancellation arrives.


class Work:
    """Asks over and over whether it should stop, and remembers how it ended."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.end = ""

    def __call__(self, check: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(self.begun.set)
        try:
            for _ in range(CHECK_COUNT):
                check()
            self.end = "done"
        except Stopped:
            self.end = "stopped"
            raise


async def test_work_of_a_cancelled_scope_is_stopped_before_the_scope_ends() -> None:
    work = Work()
    async with anyio.create_task_group() as group:
        group.start_soon(run_stoppable, work)
        await work.begun.wait()
        group.cancel_scope.cancel()
    assert work.end == "stopped"


async def test_work_of_a_cancelled_task_is_stopped_before_the_task_ends() -> None:
    work = Work()
    task = asyncio.ensure_future(run_stoppable(work))
    await work.begun.wait()
    task.cancel()
    await asyncio.wait([task], timeout=0)
    task.cancel()  # Insisting does not leave the thread behind either.
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.end == "stopped"


async def test_results_and_errors_come_through() -> None:
    assert await run_stoppable(lambda _: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await run_stoppable(lambda _: 1 // 0)
