"""Snapshot schedules, as the API sees them in tests."""

from collections.abc import Collection, Mapping

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId
from ramet.core.snapshot_schedule import ScheduleRecord
from ramet.policies.schedules import Instances, ScheduleKeeper, Snapshots


class MemorySchedules:
    """Schedules that are written down nowhere."""

    def __init__(self) -> None:
        self.records: dict[InstanceId, ScheduleRecord] = {}
        self.damaged: dict[InstanceId, RametError] = {}
        self.failing = 0
        """How many of the next calls the disk refuses."""

    def load(self) -> tuple[Collection[ScheduleRecord], Mapping[InstanceId, RametError]]:
        return list(self.records.values()), self.damaged

    def save(self, record: ScheduleRecord) -> None:
        self._check()
        self.records[record.instance] = record

    def remove(self, instance: InstanceId) -> None:
        self._check()
        self.records.pop(instance, None)

    def _check(self) -> None:
        if self.failing:
            self.failing -= 1
            raise RametError("the disk is full")


class StandInSchedules(ScheduleKeeper):
    """The real keeper of schedules, which nobody runs: no snapshot is taken."""

    def __init__(self, fleet: Instances, snapshots: Snapshots) -> None:
        super().__init__(fleet, snapshots, MemorySchedules())

    def reset(self) -> None:
        """Forget all of them."""
        self._records.clear()
        self._damaged.clear()
