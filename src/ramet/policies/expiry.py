"""Removes instances whose time is up, with all of their data."""

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import anyio
import structlog

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord
from ramet.instance.fleet_types import InstanceNotFound
from ramet.policies.due import DueTimes

MAX_CONCURRENT: Final = 16
RETRY_S: Final = 30.0
"""How soon one that could not be removed is tried again."""

log = structlog.get_logger(__name__)


class Removers(Protocol):
    """The instances: `ramet.instance.fleet.Fleet`."""

    async def delete(self, ref: str) -> None: ...


class ExpiryKeeper:
    """Removes each instance when its record says so. `now` returns Unix seconds."""

    def __init__(
        self, fleet: Removers, now: Callable[[], float] = time.time, retry_s: float = RETRY_S
    ) -> None:
        self._fleet, self._now, self._retry_s = fleet, now, retry_s
        self._expires_at: dict[InstanceId, float] = {}
        self._due = DueTimes(now)
        self._places = anyio.Semaphore(MAX_CONCURRENT)

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now. Never fails."""
        at = record.spec.expires_at
        if at is None or record.is_deleting:
            self._expires_at.pop(record.id, None)
        else:
            self._expires_at[record.id] = at
            self._due.put(at, record.id)

    async def run(self, found: Iterable[InstanceRecord] = ()) -> None:
        """Remove what is due, until cancelled. `found`: the instances there are already."""
        for record in found:
            self.see(record)
        async with anyio.create_task_group() as group:
            while True:
                instance = await self._due.next()
                at = self._expires_at.get(instance)
                if at is None:
                    continue
                if at <= self._now():
                    group.start_soon(self._remove, instance)
                else:
                    self._due.put(at, instance)

    async def _remove(self, instance: InstanceId) -> None:
        async with self._places:
            if self._expires_at.get(instance, float("inf")) > self._now():
                return  # It was given more time while it waited; `see` has put that.
            try:
                await self._fleet.delete(instance)
            except InstanceNotFound:
                pass
            except RametError as error:
                log.warning("expired_instance_not_removed", instance=instance, error=str(error))
                self._due.put(self._now() + self._retry_s, instance)
                return
            self._expires_at.pop(instance, None)
            log.info("expired_instance_removed", instance=instance)
