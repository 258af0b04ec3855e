"""One queue for all that is done to the limits of living TAPs, and who is not limited as asked.

A TAP gets its limits while it is being made, before anybody can send through it (docs/adr/0009): no guest
is ever there without them, and no fork waits here. What is left for the queue is what comes later: a daemon
that started anew makes sure of the limits of the guests it found, a failure is tried again, and what stands
beside a TAP goes when it has gone. One at a time: each wish is carried out once, of several for one TAP the
last, and none after its endpoint has been released.

What fails does not pass silently: the endpoint is *degraded*, visible in `statistics`, until it succeeds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
import structlog

from ramet.core.errors import RametError
from ramet.net.rates import UNLIMITED, RateLimits
from ramet.net.slots import Endpoint

RETRY_S: Final = 10.0

log = structlog.get_logger(__name__)


class ShapingKernel(Protocol):
    """What the queue asks of the kernel, see `ramet.net.tap_shaping.TapShaping`."""

    async def present(self, endpoints: Iterable[Endpoint]) -> Mapping[Endpoint, RateLimits]:
        """Return the limits that TAPs have."""
        ...

    async def apply(self, endpoint: Endpoint, limits: RateLimits) -> bool:
        """Give a TAP its limits; False if there is none."""
        ...

    async def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Remove what is left of the limits of TAPs that are gone."""
        ...


@dataclass(frozen=True, slots=True)
class ShapingStatistics:
    """What the queue did. `degraded`: TAPs that are not limited as asked, each with the reason.

    `kept_count` were found as they should be, `skipped_count` had gone before their turn.
    """

    waiting_count: int
    applied_count: int
    kept_count: int
    skipped_count: int
    failed_count: int
    degraded: Mapping[str, str]


@dataclass(slots=True, eq=False)
class _Removal:
    endpoint: Endpoint
    is_done: bool = False
    failure: RametError | None = None


@dataclass(slots=True)
class _Counts:
    applied: int = 0
    kept: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(slots=True)
class ShapingQueue:
    """The queue. `run` carries out what is put into it; without it, only `work` and `remove` do."""

    kernel: ShapingKernel
    _held: dict[Endpoint, RateLimits] = field(default_factory=dict)
    """The limits of all that have, or may have, any."""
    _waiting: dict[Endpoint, RateLimits] = field(default_factory=dict)
    _found: dict[Endpoint, RateLimits] = field(default_factory=dict)
    """What the kernel had when it was last looked at, of those nobody touched since."""
    _removals: list[_Removal] = field(default_factory=list)
    _degraded: dict[Endpoint, str] = field(default_factory=dict)
    _counts: _Counts = field(default_factory=_Counts)
    _turn: anyio.Lock = field(default_factory=anyio.Lock)
    _arrival: anyio.Event = field(default_factory=anyio.Event)

    def hold(self, endpoint: Endpoint, limits: RateLimits) -> None:
        """Note that a TAP is being made with these limits: `remove` is to be called when it is gone."""
        for memory in (self._waiting, self._found, self._degraded):
            memory.pop(endpoint, None)
        if limits != UNLIMITED or endpoint in self._held:
            self._held[endpoint] = limits

    def put_nowait(self, endpoint: Endpoint, limits: RateLimits) -> None:
        """Ask for these limits on a TAP that is there already, in the place of what was asked before."""
        self._held[endpoint] = limits
        self._waiting[endpoint] = limits
        self._arrival.set()

    async def remove(self, endpoint: Endpoint) -> None:
        """Forget `endpoint`, whose TAP is gone, and remove what is beside it. Idempotent.

        Those that come together share one call of the kernel.

        Raises:
            NetworkFailed: it is still there, and still held.
        """
        if endpoint not in self._held:
            return
        if self._waiting.pop(endpoint, None) is not None:
            self._counts.skipped += 1
        removal = _Removal(endpoint)
        self._removals.append(removal)
        async with self._turn:
            if not removal.is_done:
                with anyio.CancelScope(shield=True):
                    await self._remove_all()
        if removal.failure is not None:
            raise removal.failure

    async def _remove_all(self) -> None:
        removals, self._removals = self._removals, []
        failure: RametError | None = None
        forgotten = (self._held, self._found, self._degraded)
        try:
            await self.kernel.remove([removal.endpoint for removal in removals])
        except RametError as error:
            failure = error
        for removal in removals:
            removal.is_done, removal.failure = True, failure
            if failure is None:
                for memory in forgotten:
                    memory.pop(removal.endpoint, None)

    async def run(self) -> None:
        """Carry out what is put in, and what failed once more every RETRY_S, until cancelled."""
        while True:
            with anyio.move_on_after(RETRY_S if self._degraded else None) as waited:
                await self._arrival.wait()
            self._arrival = anyio.Event()
            if waited.cancelled_caught:
                for endpoint in self._degraded:
                    self._waiting.setdefault(endpoint, self._held[endpoint])
            await self.work()

    async def work(self) -> None:
        """Carry out all that waits, one after the other; who comes to remove gets a turn in between."""
        async with self._turn:
            await self._look()
        while self._waiting:
            async with self._turn:
                if self._waiting:
                    endpoint = next(iter(self._waiting))
                    await self._shape(endpoint, self._waiting.pop(endpoint))
        self._found.clear()

    async def _look(self) -> None:
        endpoints = tuple(self._waiting)
        try:
            found = await self.kernel.present(endpoints)
        except RametError as error:
            log.warning("limits_not_listed", error=str(error))  # Then all are applied.
            return
        self._found = {endpoint: limits for endpoint, limits in found.items() if endpoint in self._waiting}

    async def _shape(self, endpoint: Endpoint, limits: RateLimits) -> None:
        if self._found.pop(endpoint, None) == limits:
            self._counts.kept += 1
            self._degraded.pop(endpoint, None)
            return
        try:
            is_there = await self.kernel.apply(endpoint, limits)
        except RametError as error:
            self._counts.failed += 1
            if self._degraded.get(endpoint) != str(error):  # Told once, not with every repetition.
                log.warning("endpoint_degraded", interface=endpoint.tap_name, error=str(error))
            self._degraded[endpoint] = str(error)
            return
        if is_there:
            self._counts.applied += 1
            log.info("limits_applied", interface=endpoint.tap_name, limits=str(limits))
        else:
            self._counts.skipped += 1
        self._degraded.pop(endpoint, None)

    def degraded(self, endpoint: Endpoint) -> str | None:
        """Return why `endpoint` is not limited as asked, None if it is."""
        return self._degraded.get(endpoint)

    def statistics(self) -> ShapingStatistics:
        """Return what was done, and who is degraded."""
        counts = self._counts
        return ShapingStatistics(
            waiting_count=len(self._waiting),
            applied_count=counts.applied,
            kept_count=counts.kept,
            skipped_count=counts.skipped,
            failed_count=counts.failed,
            degraded={endpoint.tap_name: reason for endpoint, reason in self._degraded.items()},
        )
