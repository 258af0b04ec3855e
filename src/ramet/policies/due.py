"""What is to be looked at when: the times of instances, and whoever waits for the next.

Times are those of the wall clock, which may be set. Set forward, what has come is due. Set back, nobody knows
what any time meant: all instances are to be looked at anew, and whoever looks says when the next time is.
"""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Final

import anyio

from ramet.core.ids import InstanceId

CLOCK_CHECK_S: Final = 60.0
"""How long is waited at most before the clock is looked at again: somebody may have set it."""
SET_BACK_S_MIN: Final = 1.0
"""By how much less than before the clock must show to have been set back; less only waits so much longer."""


class DueTimes:
    """For each instance the earliest time at which to look at it. `now` returns Unix seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._at: dict[InstanceId, float] = {}
        self._heap: list[tuple[float, int, InstanceId]] = []
        self._numbers = count()
        self._latest = now()
        self._is_sooner = anyio.Event()

    def put(self, at: float, instance: InstanceId) -> None:
        """Have an instance be looked at by then; if it is to be looked at before, nothing changes."""
        if self._at.get(instance, at + 1.0) <= at:
            return
        self._at[instance] = at
        heapq.heappush(self._heap, (at, next(self._numbers), instance))
        if self._heap[0][2] == instance:
            self._is_sooner.set()

    async def next(self) -> InstanceId:
        """Return the first instance whose time has come, when it has; it has no time any more.

        Of a clock that was set back, each instance's time has come.
        """
        while True:
            self._is_sooner = anyio.Event()
            wait_s = CLOCK_CHECK_S
            self._look_at_clock()
            if self._heap:
                at, _, instance = self._heap[0]
                if self._at.get(instance) != at:  # There is an earlier one of it, or was.
                    heapq.heappop(self._heap)
                    continue
                if at <= self._now():
                    heapq.heappop(self._heap)
                    del self._at[instance]
                    return instance
                wait_s = min(wait_s, at - self._now())
            with anyio.move_on_after(wait_s):
                await self._is_sooner.wait()

    def _look_at_clock(self) -> None:
        now = self._now()
        if now < self._latest - SET_BACK_S_MIN:
            self._at = dict.fromkeys(self._at, now)
            self._heap = [(now, next(self._numbers), instance) for instance in self._at]  # In order: a heap.
        self._latest = now
