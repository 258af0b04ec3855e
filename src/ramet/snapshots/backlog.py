"""What is to be done to what is stored, in the background: each at its time, one after the other."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

KeyT = TypeVar("KeyT", bound=str)
"""The id of what is stored: of a capture, or of a snapshot."""


class Backlog(Generic[KeyT]):
    """What something is to be done to. For the event loop's thread."""

    def __init__(self) -> None:
        self._due: dict[KeyT, float] = {}
        """When to see to it, in seconds of the monotonic clock."""
        self._job: tuple[KeyT, anyio.CancelScope] | None = None
        self._has_news = anyio.Event()

    async def run(self, see_to: Callable[[KeyT], Awaitable[None]]) -> None:
        """Have `see_to` called for what is due, until cancelled."""
        while True:
            self._has_news = anyio.Event()
            now = time.monotonic()
            key = min(self._due, key=self._due.__getitem__, default=None)
            if key is None or self._due[key] > now:
                with anyio.move_on_after(math.inf if key is None else self._due[key] - now):
                    await self._has_news.wait()
                continue
            del self._due[key]
            with anyio.CancelScope() as scope:
                self._job = key, scope
                try:
                    await see_to(key)
                finally:
                    self._job = None

    @property
    def current(self) -> KeyT | None:
        """What is being seen to."""
        return None if self._job is None else self._job[0]

    def due_at(self, key: KeyT) -> float | None:
        """Return when it is to be seen to, in seconds of the monotonic clock; None: never."""
        return self._due.get(key)

    def see_at(self, key: KeyT, when: float) -> None:
        """See to it then, in place of any other time, in seconds of the monotonic clock."""
        self._due[key] = when
        self._has_news.set()

    def interrupt(self, key: KeyT) -> None:
        """If it is just being seen to, end that."""
        if self._job is not None and self._job[0] == key:
            self._job[1].cancel()

    def forget(self, key: KeyT) -> None:
        """See to it no more, and end it if that is just done."""
        self._due.pop(key, None)
        self.interrupt(key)
