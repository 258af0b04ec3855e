"""Snapshot schedules on the wire: what a request asks for, what is shown, and the calls."""

from http import HTTPStatus
from typing import Final

from fastapi import APIRouter

from ramet.api.asked import check_tags
from ramet.api.bounds import about
from ramet.api.ports import SchedulesPort
from ramet.api.times import format_time, shown_time
from ramet.core.errors import Invalid
from ramet.core.ids import is_name
from ramet.core.snapshot_schedule import (
    INTERVAL_S_MAX,
    INTERVAL_S_MIN,
    KEPT_AGE_S_MAX,
    KEPT_AGE_S_MIN,
    KEPT_COUNT_MAX,
    PREFIX_LENGTH_MAX,
    Retention,
    ScheduleRecord,
    SnapshotSchedule,
)
from ramet.core.units import format_duration, parse_duration
from ramet.wire_api import schedules as wire
from ramet.wire_api.errors import Error

_PATH: Final = "/{id}/snapshot-schedule"


def router(schedules: SchedulesPort) -> APIRouter:
    """Return the routes on snapshot schedules."""
    routes = APIRouter(prefix="/instances", tags=["snapshots"], responses={"default": {"model": Error}})

    @routes.get(_PATH)
    async def get_snapshot_schedule(id: str) -> wire.SnapshotSchedule:
        return to_wire(schedules.get(id))

    @routes.put(_PATH)
    async def set_snapshot_schedule(id: str, body: wire.SetSnapshotSchedule) -> wire.SnapshotSchedule:
        return to_wire(schedules.put(id, to_schedule(body)))

    @routes.delete(_PATH, status_code=HTTPStatus.NO_CONTENT)
    async def delete_snapshot_schedule(id: str) -> None:
        schedules.delete(id)

    return routes


def to_schedule(body: wire.SetSnapshotSchedule) -> SnapshotSchedule:
    """Return the schedule that a request asks for.

    Raises:
        Invalid: a time is none or out of bounds, nothing bounds what is kept, or the prefix begins no name.
    """
    with about("interval"):
        interval_s = parse_duration(body.interval)
    if not INTERVAL_S_MIN <= interval_s <= INTERVAL_S_MAX:
        raise Invalid(
            f"interval is {body.interval!r:.40}",
            remedy="use a duration from 1m to a year",
            field="interval",
        )
    prefix = body.name_prefix or None
    if prefix is not None and not (is_name(prefix) and len(prefix) <= PREFIX_LENGTH_MAX):
        raise Invalid(
            f"{prefix[: PREFIX_LENGTH_MAX + 1]!r} cannot begin the name of a snapshot",
            remedy=f"use 1 to {PREFIX_LENGTH_MAX} lowercase letters, digits and inner dashes",
            field="name_prefix",
        )
    check_tags(body.metadata or {}, "metadata")
    return SnapshotSchedule(interval_s, _retention(body.retention), prefix, dict(body.metadata or {}))


def _retention(body: wire.ScheduleRetention) -> Retention:
    count = body.max_count or 0
    with about("retention.max_age"):
        age_s = 0.0 if body.max_age is None else parse_duration(body.max_age)
    if not 0 <= count <= KEPT_COUNT_MAX:
        raise Invalid(
            f"retention.max_count is {count}",
            remedy=f"use a number from 0, which is no bound, to {KEPT_COUNT_MAX}",
            field="retention.max_count",
        )
    if age_s and not KEPT_AGE_S_MIN <= age_s <= KEPT_AGE_S_MAX:
        raise Invalid(
            f"retention.max_age is {body.max_age!r:.40}",
            remedy="use a duration from 1m to ten years, or 0, which is no bound",
            field="retention.max_age",
        )
    if not count and not age_s:
        raise Invalid(
            "retention bounds neither how many snapshots are kept nor for how long",
            remedy="give max_count or max_age",
            field="retention",
        )
    return Retention(count or None, age_s or None)


def to_wire(record: ScheduleRecord) -> wire.SnapshotSchedule:
    """Return a schedule as the API shows it."""
    schedule, retention = record.schedule, record.schedule.retention
    age_s = retention.max_age_s
    return wire.SnapshotSchedule(
        instance_id=record.instance,
        interval=format_duration(schedule.interval_s),
        retention=wire.ScheduleRetention(
            retention.max_count, None if age_s is None else format_duration(age_s)
        ),
        created_at=format_time(record.created_at),
        updated_at=format_time(record.updated_at),
        next_run_at=format_time(record.next_run_at),
        metadata=schedule.tags,
        name_prefix=schedule.name_prefix,
        last_run_at=shown_time(record.last_run_at),
        last_snapshot_id=record.last_snapshot,
        last_error=record.last_error or None,
    )
