"""When a schedule takes its next snapshot, of what kind, and which of them are kept: pure functions.

The runs of a schedule stand on a grid, one interval apart, that does not move with how long a run takes, or
by how much it was late. What was missed is made up for by one run, not by as many as were missed.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from math import floor
from typing import Final
from zlib import crc32

from ramet.core.ids import InstanceId
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.snapshot_schedule import Retention, ScheduleRecord
from ramet.core.spec import State

PREFIX_DEFAULT: Final = "scheduled"
JITTER_SHARE: Final = 0.1
JITTER_S_MAX: Final = 60.0
_TIME_FORMAT: Final = "%Y%m%d-%H%M%S"

KIND_OF: Final[Mapping[State, SnapshotKind]] = {
    State.RUNNING: SnapshotKind.STANDBY,
    State.STANDBY: SnapshotKind.STANDBY,
    State.STOPPED: SnapshotKind.STOPPED,
}
"""What is taken of an instance in which state; in any other, none can be."""


def jitter_s(instance: InstanceId, interval_s: float) -> float:
    """Return by how much an instance's first run is later than asked, so that not all come at once.

    Always the same for the same instance; a tenth of the interval at most, and never above a minute.
    """
    return crc32(instance.encode()) / (1 << 32) * min(JITTER_SHARE * interval_s, JITTER_S_MAX)


def first_run(instance: InstanceId, interval_s: float, now: float) -> float:
    """Return when a schedule that begins now runs for the first time."""
    return now + interval_s + jitter_s(instance, interval_s)


def run_after(due: float, interval_s: float, now: float) -> float:
    """Return the first time after now, of those that are whole intervals from `due` on."""
    if due > now:
        return due
    at = due + (floor((now - due) / interval_s) + 1) * interval_s
    return at if at > now else at + interval_s  # Where rounding took the last bit.


def within_reach(record: ScheduleRecord, now: float) -> float:
    """Return when a schedule runs next: as it says, or sooner where a clock that was set back made that far.

    No run is ever more than the interval and the jitter away.
    """
    return min(record.next_run_at, first_run(record.instance, record.schedule.interval_s, now))


def name_of(prefix: str | None, now: float) -> str:
    """Return what a snapshot taken now is called: 16 characters longer than the prefix."""
    return f"{prefix or PREFIX_DEFAULT}-{datetime.fromtimestamp(now, UTC).strftime(_TIME_FORMAT)}"


def outdated(snapshots: Iterable[SnapshotRecord], retention: Retention, now: float) -> list[SnapshotRecord]:
    """Return which of a schedule's own snapshots are to go, oldest first."""
    newest_first = sorted(snapshots, key=lambda one: one.created_at, reverse=True)
    kept = newest_first[: retention.max_count]
    if retention.max_age_s is not None:
        kept = [one for one in kept if one.created_at + retention.max_age_s > now]
    return newest_first[len(kept) :][::-1]


def next_outdated(snapshots: Iterable[SnapshotRecord], retention: Retention) -> float | None:
    """Return when the oldest of a schedule's own snapshots becomes too old; None: never by itself."""
    oldest = min((one.created_at for one in snapshots), default=None)
    if oldest is None or retention.max_age_s is None:
        return None
    return oldest + retention.max_age_s
