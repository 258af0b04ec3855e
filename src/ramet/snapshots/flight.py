"""One capture, many children.

Whoever wants to fork a running source boards its next flight. A flight takes passengers until the pause
of its capture is about to begin; who comes later boards the next one, which starts when this one has
landed. So a child always contains what happened before its fork was asked for, and a burst costs one capture.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import structlog
from anyio.abc import TaskGroup

from ramet.core.errors import Broken, RametError
from ramet.core.ids import InstanceId

log = structlog.get_logger(__name__)


class Captured(Protocol):
    """What a flight brings back."""

    def close(self) -> None:
        """Give it up: nobody needs it any more."""
        ...


CapturedT = TypeVar("CapturedT", bound=Captured)
Take = Callable[[InstanceId, Callable[[], None]], Awaitable[CapturedT]]
"""Takes a capture of an instance; calls the function it is given when nobody may join any more."""


class Flight(Generic[CapturedT]):
    """One capture of one source and the count of those who need it. An async context manager per passenger.

    The memory is freed, and the frozen layer given up, when the last passenger has left: by then their VMMs
    map the one, and their disks stand on the other.
    """

    def __init__(self) -> None:
        self._landed = asyncio.Event()
        self._taken: CapturedT | None = None
        self._error: BaseException | None = None
        self._passengers = 0
        self.landed_at = 0.0
        """When it landed, by `time.perf_counter`."""

    async def __aenter__(self) -> "Flight[CapturedT]":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._passengers -= 1
        self._close_if_done()

    async def wait_landed(self) -> CapturedT:
        """Return the capture.

        Raises:
            RametError: it could not be taken.
        """
        await self._landed.wait()
        if self._error is not None:
            raise self._error
        assert self._taken is not None
        return self._taken

    def board(self) -> "Flight[CapturedT]":
        self._passengers += 1
        return self

    def land(self, taken: CapturedT | None, error: BaseException | None) -> None:
        self._taken, self._error = taken, error
        self.landed_at = time.perf_counter()
        self._landed.set()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._passengers == 0 and self._taken is not None:
            taken, self._taken = self._taken, None
            taken.close()


class _Runway:
    """What one source's captures are taken on, one after the other."""

    def __init__(self) -> None:
        self.free = asyncio.Lock()
        self.flights = 0


class Flights(Generic[CapturedT]):
    """The flights of all sources. `group` owns the captures while they are taken."""

    def __init__(self, take: Take[CapturedT], group: TaskGroup) -> None:
        self._take, self._group = take, group
        self._boarding: dict[InstanceId, Flight[CapturedT]] = {}
        self._runways: dict[InstanceId, _Runway] = {}

    def board(self, source: InstanceId) -> Flight[CapturedT]:
        """Board the next flight of `source`: `async with flights.board(source) as flight`."""
        flight = self._boarding.get(source)
        if flight is None:
            flight = self._boarding[source] = Flight()
            self._group.start_soon(self._fly, source, flight)
        return flight.board()

    async def _fly(self, source: InstanceId, flight: Flight[CapturedT]) -> None:
        def close_doors() -> None:
            if self._boarding.get(source) is flight:
                del self._boarding[source]

        runway = self._runways.setdefault(source, _Runway())
        runway.flights += 1
        taken: CapturedT | None = None
        error: BaseException | None = None
        try:
            async with runway.free:
                taken = await self._take(source, close_doors)
        except RametError as failure:
            error = failure
        except Exception as failure:
            # A mistake of ours fails those who wait for this capture, and nobody else.
            log.exception("capture_failed_unexpectedly", instance=source)
            error = Broken(f"internal error while capturing: {type(failure).__name__}: {failure}")
        except BaseException as failure:
            error = failure
            raise
        finally:
            close_doors()
            runway.flights -= 1
            if not runway.flights:
                del self._runways[source]
            flight.land(taken, error)
