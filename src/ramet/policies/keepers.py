"""All who keep instances to their rules, as one."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import anyio

from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord
from ramet.policies.checks import HealthKeeper
from ramet.policies.expiry import ExpiryKeeper
from ramet.policies.idle import IdleKeeper
from ramet.policies.reclaiming import ReclaimKeeper
from ramet.policies.restarts import RestartKeeper
from ramet.policies.retention import RetentionKeeper
from ramet.policies.schedules import ScheduleKeeper
from ramet.policies.traffic import TrafficKeeper


@dataclass(frozen=True, slots=True)
class Keepers:
    """Who has instances sleep, wake, go, be kept in snapshots, give memory back, be asked how they do and be
    started again; and who removes images that none of them use.
    """

    idle: IdleKeeper
    traffic: TrafficKeeper
    expiry: ExpiryKeeper
    schedules: ScheduleKeeper
    reclaims: ReclaimKeeper
    health: HealthKeeper
    restarts: RestartKeeper
    retention: RetentionKeeper

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now. Never fails."""
        self.idle.see(record)
        self.traffic.see(record)
        self.expiry.see(record)
        self.reclaims.see(record)
        self.health.see(record)
        self.restarts.see(record)
        self.retention.see(record)

    def see_gone(self, instance: InstanceId) -> None:
        """Take note that an instance is gone. Never fails."""
        self.schedules.see_gone(instance)

    async def run(self, found: Callable[[], Iterable[InstanceRecord]] = tuple) -> None:
        """Keep them to their rules, until cancelled. `found` tells which instances there are already."""
        async with anyio.create_task_group() as group:
            for keeper in (
                self.idle,
                self.traffic,
                self.expiry,
                self.schedules,
                self.reclaims,
                self.health,
                self.restarts,
                self.retention,
            ):
                group.start_soon(keeper.run, _as_they_are(found))


def _as_they_are(found: Callable[[], Iterable[InstanceRecord]]) -> Iterator[InstanceRecord]:
    """Yield what there is by the time that somebody looks: `see` may have been told more by then."""
    yield from found()
