"""Starts instances again whose run has ended, as their policy says.

What is to be done, and whether, is in their records: a daemon that starts goes on where the one before was.
"""

import random
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import anyio
import structlog

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord
from ramet.core.supervision import judge_restart
from ramet.instance.fleet_types import InstanceNotFound, InstanceView, WrongState
from ramet.policies.due import DueTimes

MAX_CONCURRENT: Final = 16
RETRY_S: Final = 30.0
"""How soon one is tried again whose start was refused, not failed."""
SPREAD_S_MAX: Final = 1.0
"""How much later than they could, and than each other, instances start that have ended together."""

log = structlog.get_logger(__name__)


class Restarters(Protocol):
    """The instances: `ramet.instance.fleet.Fleet`."""

    async def restart(self, ref: str) -> InstanceView: ...


class RestartKeeper:
    """Starts each instance again when its record says so.

    Args:
        now: Unix seconds.
        chance: a number from 0 to 1, another each time.
    """

    def __init__(
        self,
        fleet: Restarters,
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        retry_s: float = RETRY_S,
    ) -> None:
        self._fleet, self._now, self._chance, self._retry_s = fleet, now, chance, retry_s
        self._waiting: dict[InstanceId, InstanceRecord] = {}
        self._due = DueTimes(now)
        self._places = anyio.Semaphore(MAX_CONCURRENT)

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now. Never fails."""
        next_at = judge_restart(record, self._now()).next_at
        if next_at is None:
            self._waiting.pop(record.id, None)
            return
        self._waiting[record.id] = record
        spread_s = max(0.0, min(SPREAD_S_MAX, (next_at - (record.stopped_at or next_at)) / 10))
        self._due.put(next_at + spread_s * self._chance(), record.id)

    async def run(self, found: Iterable[InstanceRecord] = ()) -> None:
        """Start what is due, until cancelled. `found`: the instances there are already."""
        for record in found:
            self.see(record)
        async with anyio.create_task_group() as group:
            while True:
                instance = await self._due.next()
                if not self._is_due(instance):
                    continue
                group.start_soon(self._restart, instance)

    def _is_due(self, instance: InstanceId) -> bool:
        """Tell whether an instance is to start now; one that is to later is looked at then."""
        record = self._waiting.get(instance)
        next_at = None if record is None else judge_restart(record, self._now()).next_at
        if next_at is None:
            return False
        if next_at > self._now():
            self._due.put(next_at, instance)
            return False
        return True

    async def _restart(self, instance: InstanceId) -> None:
        async with self._places:
            if not self._is_due(instance):
                return  # Somebody started or stopped it, or deleted it, while it waited.
            before = self._waiting[instance].restarts.attempts
            try:
                found = await self._fleet.restart(instance)
            except (InstanceNotFound, WrongState):
                return  # Somebody was quicker; `see` has been told.
            except RametError as error:
                log.warning("instance_not_started_again", instance=instance, error=str(error))
                record = self._waiting.get(instance)
                if record is not None and record.restarts.attempts == before:  # It was not even begun.
                    self._due.put(self._now() + self._retry_s, instance)
                return
            log.info("instance_started_again", instance=instance, attempts=found.record.restarts.attempts)
