"""What is to be done to stored captures in the background: each at its time, one after the other."""

import math
import time
from collections.abc import Awaitable, Callable

import anyio

from ramet.core.ids import CaptureId


class Backlog:
    """The captures that something is to be done to. For the event loop's thread."""

    def __init__(self) -> None:
        self._due: dict[CaptureId, float] = {}
        """When to see to a capture, in seconds of the monotonic clock."""
        self._job: tuple[CaptureId, anyio.CancelScope] | None = None
        self._has_news = anyio.Event()

    async def run(self, see_to: Callable[[CaptureId], Awaitable[None]]) -> None:
        """Have `see_to` called for what is due, until cancelled."""
        while True:
            self._has_news = anyio.Event()
            now = time.monotonic()
            capture = min(self._due, key=self._due.__getitem__, default=None)
            if capture is None or self._due[capture] > now:
                with anyio.move_on_after(math.inf if capture is None else self._due[capture] - now):
                    await self._has_news.wait()
                continue
            del self._due[capture]
            with anyio.CancelScope() as scope:
                self._job = capture, scope
                try:
                    await see_to(capture)
                finally:
                    self._job = None

    @property
    def current(self) -> CaptureId | None:
        """The capture that is being seen to."""
        return None if self._job is None else self._job[0]

    def due_at(self, capture: CaptureId) -> float | None:
        """Return when a capture is to be seen to, in seconds of the monotonic clock; None: never."""
        return self._due.get(capture)

    def see_at(self, capture: CaptureId, when: float) -> None:
        """See to a capture then, in place of any other time, in seconds of the monotonic clock."""
        self._due[capture] = when
        self._has_news.set()

    def interrupt(self, capture: CaptureId) -> None:
        """If a capture is just being seen to, end that."""
        if self._job is not None and self._job[0] == capture:
            self._job[1].cancel()

    def forget(self, capture: CaptureId) -> None:
        """See to a capture no more, and end it if that is just done."""
        self._due.pop(capture, None)
        self.interrupt(capture)
