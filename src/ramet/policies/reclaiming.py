"""Has guests give memory back to the host when somebody asks for it, and have it again when time is up.

What was asked is written down before the first guest is: a daemon that is killed in the middle leaves to the
next one when all of them are to have theirs again. A balloon goes with a guest's memory into its forks and
its sleep, so one that begins to run after the time is looked at, too.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import anyio
import structlog
from anyio import to_thread

from ramet.core.errors import RametError, Unsupported
from ramet.core.guest_memory import GuestMemory, HostMemory, ReclaimHold
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.policies.due import CLOCK_CHECK_S
from ramet.policies.reclaim import PressureState, ReclaimConfig, Step, plan, pressure

MAX_CONCURRENT: Final = 16
RETRY_S: Final = 10.0

log = structlog.get_logger(__name__)


class ReclaimDisabled(Unsupported):
    """This server takes no memory back from guests."""

    code = "memory_reclaim_disabled"


class Guests(Protocol):
    """The running guests: `ramet.effects.guest_memory.SiteGuests`."""

    async def look(self, instances: Iterable[InstanceId] | None = None) -> Sequence[GuestMemory]:
        """Return how it stands with them; None: with all. Never fails."""
        ...

    async def ask(self, instance: InstanceId, balloon_bytes: int) -> None:
        """Ask one to give back so much in all. Raises RametError: it cannot be asked."""
        ...


class Holds(Protocol):
    """What was asked for, on the disk: `ramet.store.holds.HoldFile`."""

    def load(self) -> ReclaimHold | None:
        """Return what was asked for last, also long ago; None: nothing ever."""
        ...

    def save(self, hold: ReclaimHold) -> None:
        """Write it down, durable when this returns. Raises RametError: the disk refuses."""
        ...


class StepStatus(StrEnum):
    """What came of asking one guest."""

    PLANNED = "planned"
    APPLIED = "applied"
    UNCHANGED = "unchanged"
    UNSUPPORTED = "unsupported"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one step: what the guest is to get along with now, and why not as planned."""

    step: Step
    status: StepStatus
    target_bytes: int
    error: str = ""

    @property
    def applied_bytes(self) -> int:
        """How much it gives back now, in all."""
        return self.step.guest.assigned_bytes - self.target_bytes


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What came of a request. `hold_until` (Unix seconds): when guests have theirs again; None: they have."""

    requested_bytes: int
    taken: Sequence[Taken]
    hold_until: float | None
    host: HostMemory
    pressure: PressureState

    @property
    def planned_bytes(self) -> int:
        return sum(one.step.balloon_bytes for one in self.taken)

    @property
    def applied_bytes(self) -> int:
        return sum(one.applied_bytes for one in self.taken)


class ReclaimKeeper:
    """Asks guests for memory, and gives it back in time. `now` returns Unix seconds."""

    def __init__(
        self,
        guests: Guests,
        holds: Holds,
        host: Callable[[], HostMemory],
        config: ReclaimConfig,
        now: Callable[[], float] = time.time,
        retry_s: float = RETRY_S,
    ) -> None:
        self._guests, self._holds, self._host, self._config = guests, holds, host, config
        self._now, self._retry_s = now, retry_s
        self._hold: ReclaimHold | None = None
        self._pressure = PressureState.HEALTHY
        self._running: set[InstanceId] = set()
        self._woken: set[InstanceId] = set()
        """Who has begun to run since somebody looked, or could not be given back."""
        self._is_owed = False
        """Whether anybody who runs may have given something."""
        self._turn = anyio.Lock()
        self._is_news = anyio.Event()

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now. Never fails."""
        if record.state is not State.RUNNING or record.is_deleting:
            self._running.discard(record.id)
        elif record.id not in self._running:
            self._running.add(record.id)
            if self._hold is not None:
                self._woken.add(record.id)
                self._is_news.set()

    async def reclaim(
        self, wanted_bytes: int, hold_s: float, *, is_dry_run: bool = False, reason: str = ""
    ) -> Reclaimed:
        """Have guests give back `wanted_bytes` in all for `hold_s`, in the place of any earlier request.

        Of 0 bytes: have them have all of theirs now. In a dry run nothing is changed, and what would be asked
        for is told. Returns when all have been asked; they take their time.

        Raises:
            ReclaimDisabled: the settings say so.
            RametError: it cannot be written down; nobody was asked.
        """
        if not self._config.is_enabled:
            raise ReclaimDisabled(
                "this server takes no memory back from guests",
                remedy="set hypervisor.memory.reclaim_enabled",
            )
        async with self._turn:
            steps = plan(await self._guests.look(), wanted_bytes, self._config)
            if is_dry_run:
                taken = [_untaken(step, StepStatus.PLANNED) for step in steps]
                return self._told(wanted_bytes, taken)
            hold = ReclaimHold(self._now() + (hold_s if wanted_bytes else 0.0), wanted_bytes, reason)
            await to_thread.run_sync(self._holds.save, hold)  # A busy disk may take its time.
            self._hold, self._is_owed = hold, True
            taken = await self._take_all(steps)
            self._is_news.set()
            told = self._told(wanted_bytes, taken)
        log.info(
            "memory_reclaimed",
            requested_bytes=wanted_bytes,
            planned_bytes=told.planned_bytes,
            applied_bytes=told.applied_bytes,
            reason=reason,
        )
        return told

    async def run(self, found: Iterable[InstanceRecord] = ()) -> None:
        """Give back in time, until cancelled. `found`: the instances there are already."""
        self._hold = self._holds.load()
        self._is_owed = self._hold is not None
        for record in found:
            self.see(record)
        while True:
            self._is_news = anyio.Event()
            wait_s = await self._settle()
            with anyio.move_on_after(wait_s):
                await self._is_news.wait()

    async def _settle(self) -> float:
        """Give back if it is time, and return how long nothing is to be done."""
        hold, now = self._hold, self._now()
        if hold is not None and hold.until > now:
            return min(CLOCK_CHECK_S, hold.until - now)
        if self._is_owed or self._woken:
            async with self._turn:
                if self._hold is hold and not await self._give_back():
                    return self._retry_s
        return CLOCK_CHECK_S

    async def _give_back(self) -> bool:
        """Have guests have all of theirs again; tells whether all of them have."""
        is_owed, self._is_owed = self._is_owed, False
        woken, self._woken = self._woken, set()
        guests = await self._guests.look(None if is_owed else woken)
        steps = [Step(guest, 0, guest.assigned_bytes) for guest in guests if guest.balloon_bytes]
        taken = await self._take_all(steps, is_giving=True)
        failed = [one for one in taken if one.status is not StepStatus.APPLIED]
        for one in failed:
            log.warning("memory_not_given_back", instance=one.step.guest.instance, error=one.error)
        unknown = [guest.instance for guest in guests if guest.error]
        self._woken |= {*unknown, *(one.step.guest.instance for one in failed)}
        if steps:
            log.info("memory_given_back", count=len(steps) - len(failed))
        return not (failed or unknown)

    async def _take_all(self, steps: Sequence[Step], *, is_giving: bool = False) -> list[Taken]:
        taken: list[Taken | None] = [None] * len(steps)
        places = anyio.Semaphore(MAX_CONCURRENT)

        async def take(index: int) -> None:
            async with places:
                taken[index] = await self._take(steps[index], is_giving=is_giving)

        async with anyio.create_task_group() as group:
            for index in range(len(steps)):
                group.start_soon(take, index)
        return [one for one in taken if one is not None]

    async def _take(self, step: Step, *, is_giving: bool) -> Taken:
        guest = step.guest
        if not is_giving and (guest.unsupported or guest.error):
            return _untaken(step, StepStatus.UNCHANGED)
        if step.target_bytes == guest.target_bytes:
            return _untaken(step, StepStatus.UNCHANGED)
        try:
            await self._guests.ask(guest.instance, step.balloon_bytes)
        except RametError as error:
            status = StepStatus.UNSUPPORTED if isinstance(error, Unsupported) else StepStatus.ERROR
            return Taken(step, status, guest.target_bytes, str(error))
        return Taken(step, StepStatus.APPLIED, step.target_bytes)

    def _told(self, wanted_bytes: int, taken: Sequence[Taken]) -> Reclaimed:
        host = self._host()
        self._pressure = pressure(host, self._pressure, self._config)
        hold = self._hold
        until = None if hold is None or hold.until <= self._now() else hold.until
        return Reclaimed(wanted_bytes, taken, until, host, self._pressure)


def _untaken(step: Step, status: StepStatus) -> Taken:
    """Return what comes of a step that is not taken."""
    guest = step.guest
    if guest.error:
        return Taken(step, StepStatus.ERROR, guest.target_bytes, guest.error)
    if guest.unsupported:
        return Taken(step, StepStatus.UNSUPPORTED, guest.target_bytes, guest.unsupported)
    if status is StepStatus.PLANNED and step.target_bytes == guest.target_bytes:
        status = StepStatus.UNCHANGED
    return Taken(step, status, guest.target_bytes)
