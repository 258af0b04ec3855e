"""Snapshot schedules as the API shows them and as requests ask for them. Durations such as "6h"."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ScheduleRetention:
    """Which of a schedule's snapshots are kept: the `max_count` newest, none older than `max_age`.

    0 is no bound; one of the two is to be one.
    """

    max_count: int | None = None
    max_age: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class SetSnapshotSchedule:
    """The body of `PUT /instances/{id}/snapshot-schedule`: a snapshot every `interval`, from 1m on.

    `metadata` are their tags. Their names begin with `name_prefix`, "scheduled" if there is none.
    """

    interval: str
    retention: ScheduleRetention
    metadata: Mapping[str, str] | None = None
    name_prefix: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class SnapshotSchedule:
    """A schedule and how it goes; times in RFC 3339 and UTC.

    `last_error` is why the last run took no snapshot, null if it did; `last_snapshot_id` the last that any
    run took.
    """

    instance_id: str
    interval: str
    retention: ScheduleRetention
    created_at: str
    updated_at: str
    next_run_at: str
    metadata: Mapping[str, str] | None = None
    name_prefix: str | None = None
    last_run_at: str | None = None
    last_snapshot_id: str | None = None
    last_error: str | None = None
