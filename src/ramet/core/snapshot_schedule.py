"""Snapshots that are taken of an instance by themselves, again and again, and how many of them are kept."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Self

from ramet.core.ids import InstanceId, SnapshotId

INTERVAL_S_MIN: Final = 60.0
INTERVAL_S_MAX: Final = 365 * 86_400.0
PREFIX_LENGTH_MAX: Final = 47
"""What a name has room for before the time: see `ramet.policies.schedule.name_of`."""
KEPT_COUNT_MAX: Final = 10_000
KEPT_AGE_S_MIN: Final = 60.0
KEPT_AGE_S_MAX: Final = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Retention:
    """Which of a schedule's snapshots are kept: the `max_count` newest, none older than `max_age_s`.

    None is no bound; one of the two is not None.
    """

    max_count: int | None = None
    max_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class SnapshotSchedule:
    """What was asked for: a snapshot every `interval_s`, tagged with `tags`, named after `name_prefix`."""

    interval_s: float
    retention: Retention
    name_prefix: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """Which run of which schedule: what a snapshot says that was taken by one."""

    schedule: str
    number: int


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """A schedule and how far it has come. Times are Unix seconds.

    `next_run` is the number of the run that comes at `next_run_at`: a snapshot that says it is of that run
    was taken by a daemon that did not live to write it down here. `last_error` is why the last run took
    none; empty: it took `last_snapshot`.
    """

    id: str
    instance: InstanceId
    schedule: SnapshotSchedule
    created_at: float
    updated_at: float
    next_run_at: float
    next_run: int = 1
    last_run_at: float | None = None
    last_snapshot: SnapshotId | None = None
    last_error: str = ""

    @property
    def coming(self) -> ScheduledRun:
        """The run that comes next."""
        return ScheduledRun(self.id, self.next_run)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it was not.
        """
        raw = json.loads(text)
        schedule = raw["schedule"]
        schedule["retention"] = Retention(**schedule["retention"])
        raw["schedule"] = SnapshotSchedule(**schedule)
        return cls(**raw)
