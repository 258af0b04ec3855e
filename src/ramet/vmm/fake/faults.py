"""Failure on demand, at any call of the port.

A fault is armed for one call by its name and is used up by it. It strikes before the call does anything or,
with `late`, when all of it was done and only the answer is lost: the two ways a real VMM can fail us. What
stands still is seen to stand still by an event, so a test never has to wait for a time.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import anyio

from ramet.core.errors import RametError

Call = Literal[
    "boot",
    "start_waiting",
    "find",
    "adopt",
    "end",
    "kill",
    "is_paused",
    "resume",
    "prepare_disk",
    "forget_disk",
    "copy_ahead",
    "stop",
    "cont",
    "switch_disk",
    "save_devices",
    "copy_rest",
    "top_layer",
    "collapse_disk",
    "load",
    "balloon_bytes",
    "set_balloon",
]
"""What can be made to fail. "stop" and "cont" are the two ends of `paused`."""

CAPTURE_CALLS: Final[tuple[Call, ...]] = (
    "top_layer",
    "prepare_disk",
    "copy_ahead",
    "stop",
    "switch_disk",
    "save_devices",
    "copy_rest",
    "cont",
)
"""The calls of one capture that succeeds, in their order."""


@dataclass(slots=True)
class Hold:
    """A call that stands still until it is released, to go on or to fail; never, if nobody does."""

    reached: anyio.Event = field(default_factory=anyio.Event)
    _open: anyio.Event = field(default_factory=anyio.Event)
    _error: RametError | None = None

    async def wait_reached(self) -> None:
        """Return when a call stands still here."""
        await self.reached.wait()

    def release(self, error: RametError | None = None) -> None:
        """Let the call go on, or fail with `error`."""
        self._error = error
        self._open.set()

    async def stand(self) -> None:
        """Stand still until released. For the driver."""
        self.reached.set()
        await self._open.wait()
        if self._error is not None:
            raise self._error


@dataclass(slots=True)
class _Fault:
    after: int  # How many calls pass untouched first.
    late: bool
    what: RametError | Hold


class Faults:
    """What is to go wrong. `calls` are all calls that were made, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._armed: dict[Call, list[_Fault]] = {}

    def fail(self, call: Call, error: RametError, *, after: int = 0, late: bool = False) -> None:
        """Have one `call` raise `error`, after `after` calls that do not; `late`: having done its work."""
        self._arm(call, _Fault(after, late, error))

    def hold(self, call: Call, *, after: int = 0, late: bool = False) -> Hold:
        """Have one `call` stand still until the hold is released or the caller is cancelled."""
        hold = Hold()
        self._arm(call, _Fault(after, late, hold))
        return hold

    @property
    def is_used_up(self) -> bool:
        """Tell whether everything armed has happened."""
        return not any(self._armed.values())

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Stand around the work of `call`. For the driver."""
        self.calls.append(call)
        fault = self._next(call)
        if fault is not None and not fault.late:
            await _strike(fault)
        yield
        if fault is not None and fault.late:
            await _strike(fault)

    def _arm(self, call: Call, fault: _Fault) -> None:
        self._armed.setdefault(call, []).append(fault)

    def _next(self, call: Call) -> _Fault | None:
        for fault in self._armed.get(call, []):
            if fault.after == 0:
                self._armed[call].remove(fault)
                return fault
            fault.after -= 1
        return None


async def _strike(fault: _Fault) -> None:
    if isinstance(fault.what, Hold):
        await fault.what.stand()
    else:
        raise fault.what
