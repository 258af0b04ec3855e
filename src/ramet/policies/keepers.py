"""All who keep instances to their rules, as one."""

from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from ramet.core.spec import InstanceRecord
from ramet.policies.expiry import ExpiryKeeper
from ramet.policies.idle import IdleKeeper
from ramet.policies.schedules import ScheduleKeeper


@dataclass(frozen=True, slots=True)
class Keepers:
    """Who has idle instances sleep, who removes those whose time is up, and who takes snapshots of them."""

    idle: IdleKeeper
    expiry: ExpiryKeeper
    schedules: ScheduleKeeper

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now. Never fails."""
        self.idle.see(record)
        self.expiry.see(record)
        self.schedules.see(record)

    async def run(self, found: Sequence[InstanceRecord] = ()) -> None:
        """Keep them to their rules, until cancelled. `found`: the instances there are already."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.idle.run, found)
            group.start_soon(self.expiry.run, found)
            group.start_soon(self.schedules.run, found)
