"""When a schedule runs next, and what of its snapshots is kept: as told, whatever the clock does."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.core.ids import InstanceId, LayerId, SnapshotId, is_name
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.snapshot_schedule import (
    INTERVAL_S_MAX,
    INTERVAL_S_MIN,
    PREFIX_LENGTH_MAX,
    Retention,
    ScheduleRecord,
    SnapshotSchedule,
)
from ramet.core.spec import InstanceSpec, RestorePoint
from ramet.policies.schedule import (
    JITTER_S_MAX,
    JITTER_SHARE,
    first_run,
    jitter_s,
    name_of,
    next_outdated,
    outdated,
    run_after,
    within_reach,
)

WEB = InstanceId("web")
INTERVALS = st.floats(INTERVAL_S_MIN, INTERVAL_S_MAX)
TIMES = st.floats(1e9, 4e9)


def snapshot(at: float) -> SnapshotRecord:
    spec, point = InstanceSpec("i", "d", "fake", 1, 1, 1), RestorePoint(LayerId("l"), None)
    return SnapshotRecord(
        SnapshotId(f"at-{at:g}"), None, SnapshotKind.STOPPED, WEB, "web", spec, point, at, 0, 0
    )


def gone(retention: Retention, now: float, *times: float) -> list[float]:
    return [one.created_at for one in outdated([snapshot(at) for at in times], retention, now)]


def test_instances_with_the_same_schedule_do_not_run_at_the_same_time() -> None:
    found = {jitter_s(InstanceId(f"instance-{number}"), 3600.0) for number in range(100)}
    assert len(found) == 100
    assert max(found) - min(found) > JITTER_S_MAX / 2
    assert jitter_s(WEB, 3600.0) == jitter_s(WEB, 3600.0)


@given(INTERVALS, st.text())
def test_the_jitter_is_short_beside_the_interval(interval_s: float, instance: str) -> None:
    assert 0 <= jitter_s(InstanceId(instance), interval_s) < min(JITTER_SHARE * interval_s, JITTER_S_MAX)


@given(TIMES, INTERVALS, TIMES)
def test_the_next_run_is_to_come_and_less_than_an_interval_away(
    due: float, interval_s: float, now: float
) -> None:
    at = run_after(due, interval_s, now)
    assert at > now
    assert at == due or at - now <= interval_s + 1e-3
    assert abs((at - due) / interval_s - round((at - due) / interval_s)) < 1e-6


def test_a_late_run_does_not_move_those_after_it() -> None:
    assert run_after(1000.0, 60.0, 1000.0) == 1060.0
    assert run_after(1000.0, 60.0, 1059.9) == 1060.0
    assert run_after(1000.0, 60.0, 4000.0) == 4060.0
    assert run_after(1000.0, 60.0, 999.0) == 1000.0


def test_a_clock_that_was_set_back_does_not_stop_a_schedule() -> None:
    schedule = SnapshotSchedule(60.0, Retention(1))
    record = ScheduleRecord("s", WEB, schedule, 0.0, 0.0, next_run_at=10_000.0)
    assert within_reach(record, 9990.0) == 10_000.0
    assert within_reach(record, 5000.0) == first_run(WEB, 60.0, 5000.0) < 5070.0


def test_a_schedule_is_read_as_it_was_written() -> None:
    schedule = SnapshotSchedule(90.5, Retention(3, 3600.0), "nightly", {"a": "b"})
    record = ScheduleRecord("s", WEB, schedule, 1.0, 2.0, 3.5, 7, 2.5, SnapshotId("snap"), "why")
    assert ScheduleRecord.from_json(record.to_json()) == record
    for text in ("", "[]", "{}", record.to_json().replace('"max_count"', '"most"')):
        with pytest.raises((ValueError, TypeError, KeyError)):
            ScheduleRecord.from_json(text)


def test_a_snapshot_says_of_which_run_it_is() -> None:
    record = ScheduleRecord("s", WEB, SnapshotSchedule(60.0, Retention(1)), 1.0, 2.0, 3.0, next_run=7)
    for run in (None, record.coming):
        taken = SnapshotRecord.from_json(snapshot(5.0).to_json().replace('"run":null', f'"run":{_json(run)}'))
        assert taken.run == run


def _json(run: object) -> str:
    return "null" if run is None else '{"schedule":"s","number":7}'


def test_the_longest_prefix_makes_a_name() -> None:
    moment = datetime(2026, 11, 26, 12, 30, 5, tzinfo=UTC).timestamp()
    assert name_of(None, moment) == "scheduled-20261126-123005"
    longest = name_of("p" * PREFIX_LENGTH_MAX, moment)
    assert is_name(longest)
    assert not is_name("p" + longest)


def test_the_newest_are_kept() -> None:
    assert gone(Retention(max_count=2), 9.0, 3.0, 1.0, 4.0, 2.0) == [1.0, 2.0]
    assert gone(Retention(max_count=4), 9.0, 3.0, 1.0, 4.0, 2.0) == []
    assert gone(Retention(max_count=1), 9.0) == []


def test_those_that_are_too_old_go() -> None:
    assert gone(Retention(max_age_s=5.0), 9.0, 3.0, 4.0, 5.0) == [3.0, 4.0]
    assert gone(Retention(max_age_s=5.0), 90.0, 3.0, 5.0) == [3.0, 5.0]
    assert gone(Retention(max_count=1, max_age_s=5.0), 9.0, 3.0, 5.0, 6.0) == [3.0, 5.0]
    assert next_outdated([snapshot(3.0), snapshot(5.0)], Retention(max_age_s=5.0)) == 8.0
    assert next_outdated([snapshot(3.0)], Retention(max_count=5)) is None
    assert next_outdated([], Retention(max_age_s=5.0)) is None
