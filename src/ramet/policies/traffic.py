"""Wakes sleeping instances when somebody asks them for a connection, those that are to be woken so.

Each has a place on the network that takes note of it while it sleeps. It is noted once: then the instance is
woken, or, if that fails, is left alone for a while, so that no traffic can make the host try for ever.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
import structlog

from ramet.core.auto_standby import AutoStandby
from ramet.core.errors import RametError
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.instance.fleet_types import InstanceView
from ramet.policies.due import DueTimes

RETRY_S_FIRST: Final = 1.0
"""How long one that could not be woken is left alone; twice as long each time that it fails again."""
RETRY_S_MAX: Final = 60.0
DOUBLING_COUNT_MAX: Final = 16
ARMING_CONCURRENT_MAX: Final = 16

log = structlog.get_logger(__name__)


class Wakers(Protocol):
    """The instances: `ramet.instance.fleet.Fleet`."""

    def get(self, ref: str) -> InstanceView: ...

    async def restore(self, ref: str) -> InstanceView: ...


class Doorbells(Protocol):
    """Takes note of who asks sleepers for a connection: `ramet.effects.performer.SitePerformer`."""

    async def arm(self, instance: InstanceId, on_syn: Callable[[InstanceId], None]) -> bool: ...

    async def disarm(self, instance: InstanceId) -> None: ...

    def is_armed(self, instance: InstanceId) -> bool: ...


@dataclass(slots=True)
class _Sleeper:
    """One that is to be woken by traffic. Times are Unix seconds."""

    record: InstanceRecord
    failure_count: int = 0
    not_before: float = 0.0
    is_called: bool = False
    is_waking: bool = False
    armed_for: AutoStandby | None = None
    error: str = ""
    lock: anyio.Lock = field(default_factory=anyio.Lock)


@dataclass(frozen=True, slots=True)
class TrafficStatus:
    """Whether traffic wakes an instance, whether it waits for it now, and why it was not woken last."""

    is_woken: bool
    is_armed: bool
    error: str


NOT_WOKEN: Final = TrafficStatus(is_woken=False, is_armed=False, error="")


class TrafficKeeper:
    """Has sleepers be called, and wakes those that are.

    Args:
        by_default: whether those are woken that do not say.
        now: Unix seconds.
        retry_s: how long one that could not be woken, or armed, is left alone at first.
    """

    def __init__(
        self,
        fleet: Wakers,
        doorbells: Doorbells,
        *,
        by_default: bool = False,
        now: Callable[[], float] = time.time,
        retry_s: float = RETRY_S_FIRST,
    ) -> None:
        self._retry_s = retry_s
        self._fleet, self._doorbells, self._by_default, self._now = fleet, doorbells, by_default, now
        self._sleepers: dict[InstanceId, _Sleeper] = {}
        self._due = DueTimes(now)
        self._places = anyio.Semaphore(ARMING_CONCURRENT_MAX)

    # What happens

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now. Never fails."""
        if self._is_to_be_armed(record):
            sleeper = self._sleepers.setdefault(record.id, _Sleeper(record))
            sleeper.record = record
            self._due.put(max(self._now(), sleeper.not_before), record.id)
        elif record.id in self._sleepers and record.state is not State.INITIALIZING:
            del self._sleepers[record.id]
            self._due.put(self._now(), record.id)

    async def run(self, found: Iterable[InstanceRecord] = ()) -> None:
        """Wake who is called, until cancelled. `found`: the instances there are already."""
        for record in found:
            self.see(record)
        async with anyio.create_task_group() as group:
            while True:
                group.start_soon(self._settle, await self._due.next())

    # What is asked

    def status(self, record: InstanceRecord) -> TrafficStatus:
        """Say whether traffic wakes an instance, and how it stands with that."""
        sleeper = self._sleepers.get(record.id)
        return TrafficStatus(
            self._is_woken(record),
            self._doorbells.is_armed(record.id),
            "" if sleeper is None else sleeper.error,
        )

    # How it goes

    def _is_woken(self, record: InstanceRecord) -> bool:
        policy = record.spec.auto_standby
        return (
            policy is not None
            and record.spec.has_network
            and policy.is_woken_by_traffic(by_default=self._by_default)
        )

    def _is_to_be_armed(self, record: InstanceRecord) -> bool:
        is_asleep = record.state is State.STANDBY and not record.is_deleting and record.becoming is None
        return is_asleep and self._is_woken(record)

    async def _settle(self, instance: InstanceId) -> None:
        """Wake a sleeper that was called, have one be called that was not, and what sleeps no more not."""
        sleeper = self._sleepers.get(instance)
        if sleeper is not None and sleeper.is_called:
            await self._wake(sleeper)
            return
        async with self._places:
            try:
                if sleeper is None:
                    await self._doorbells.disarm(instance)
                else:
                    await self._arm(sleeper)
            except RametError as error:
                log.warning("sleeper_not_armed", instance=instance, error=str(error))
                self._put_off(instance, sleeper, error)

    async def _arm(self, sleeper: _Sleeper) -> None:
        async with sleeper.lock:
            record = sleeper.record
            if self._sleepers.get(record.id) is not sleeper or sleeper.is_waking:
                return  # It wakes; or its end, or its rest, has been put down as due.
            if 0.0 < sleeper.not_before - self._now() <= RETRY_S_MAX:  # Further away: of a clock set back.
                self._due.put(sleeper.not_before, record.id)
                return
            policy = record.spec.auto_standby
            if sleeper.armed_for == policy and self._doorbells.is_armed(record.id):
                return
            if await self._doorbells.arm(record.id, self._hear):
                sleeper.armed_for = policy

    def _hear(self, instance: InstanceId) -> None:
        """Take note that somebody has asked an instance for a connection. The loop calls it, in no task."""
        sleeper = self._sleepers.get(instance)
        if sleeper is not None:
            sleeper.is_called = True
            self._due.put(self._now(), instance)

    async def _wake(self, sleeper: _Sleeper) -> None:
        instance, since = sleeper.record.id, time.monotonic()
        sleeper.is_called, sleeper.is_waking = False, True
        try:
            await self._fleet.restore(instance)
            log.info("called_instance_awake", instance=instance, took_ms=_ms_since(since))
        except RametError as error:
            if self._sleepers.get(instance) is sleeper and self._is_to_be_armed(sleeper.record):
                log.warning("called_instance_asleep", instance=instance, error=str(error))
                self._put_off(instance, sleeper, error)
        finally:
            sleeper.is_waking = False

    def _put_off(self, instance: InstanceId, sleeper: _Sleeper | None, error: RametError) -> None:
        delay_s = self._retry_s
        if sleeper is not None:
            delay_s = min(self._retry_s * 2 ** min(sleeper.failure_count, DOUBLING_COUNT_MAX), RETRY_S_MAX)
            sleeper.failure_count += 1
            sleeper.error = str(error)
            sleeper.not_before = self._now() + delay_s
        self._due.put(self._now() + delay_s, instance)


def _ms_since(since: float) -> int:
    return round((time.monotonic() - since) * 1000)
