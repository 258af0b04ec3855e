"""Whether an instance is started again, and when, is in its record alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.core.health import ExecProbe, HealthCheck, HealthStatus, HttpProbe, Probe, TcpProbe
from ramet.core.ids import InstanceId, LayerId
from ramet.core.phases import Phases
from ramet.core.restart import RestartPolicy, Restarts, RestartWhen, RunEnd
from ramet.core.spec import Exit, InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.core.supervision import Block, RestartVerdict, judge_restart, may_end_for_health, settled

ALWAYS = RestartPolicy(RestartWhen.ALWAYS, 5.0, 3, 600.0)
ON_FAILURE = replace(ALWAYS, when=RestartWhen.ON_FAILURE)
NEVER = replace(ALWAYS, when=RestartWhen.NEVER)
ENDED = InstanceRecord(
    InstanceSpec("i", "d", "fake", 1, 1, 1, restart_policy=ALWAYS),
    InstanceIdentity(InstanceId("i"), "i", None, "0" * 32, 0.0),
    State.STOPPED,
    layer=LayerId("layer"),
    exit=Exit(0),
    started_at=1000.0,
    stopped_at=1100.0,
    restarts=Restarts(end=RunEnd.ITSELF),
)


def ended(policy: RestartPolicy | None = ALWAYS, **changes: object) -> InstanceRecord:
    record = replace(ENDED, spec=replace(ENDED.spec, restart_policy=policy))
    return replace(record, **changes)  # type: ignore[arg-type]  # The names are those of the record.


@pytest.mark.parametrize(
    ("record", "next_at"),
    [
        (ended(), 1105.0),
        (ended(None), None),
        (ended(NEVER, exit=Exit(1)), None),
        (ended(ON_FAILURE), None),
        (ended(ON_FAILURE, exit=Exit(1)), 1105.0),
        (ended(ON_FAILURE, exit=Exit(None, 9)), 1105.0),
        (ended(ON_FAILURE, exit=None), 1105.0),  # Nobody knows how it ended.
        (ended(ON_FAILURE, restarts=Restarts(end=RunEnd.HEALTH)), 1105.0),
        (ended(NEVER, restarts=Restarts(end=RunEnd.HEALTH)), None),
        (ended(restarts=Restarts()), None),  # A copy, or one put back to a snapshot: it never ran.
        (ended(layer=None), None),
        (ended(is_deleting=True), None),
        (ended(becoming=State.RUNNING), None),
        (ended(state=State.STANDBY), None),
        (ended(state=State.RUNNING), None),
        (ended(state=State.UNKNOWN), None),
    ],
)
def test_which_ends_of_a_run_are_followed_by_another(record: InstanceRecord, next_at: float | None) -> None:
    verdict = judge_restart(record, 1101.0)
    assert (verdict.next_at, verdict.blocked) == (next_at, None)


def test_who_was_stopped_by_somebody_stays_so() -> None:
    record = ended(restarts=Restarts(2, 900.0, RunEnd.REQUEST))
    assert judge_restart(record, 1e9) == RestartVerdict(2, blocked=Block.MANUAL_STOP)


def test_each_attempt_in_a_row_waits_twice_as_long_and_the_last_is_the_last() -> None:
    found = [judge_restart(ended(restarts=Restarts(n, end=RunEnd.ITSELF)), 1100.0) for n in range(4)]
    assert [each.next_at for each in found] == [1105.0, 1110.0, 1120.0, None]
    assert found[3].blocked is Block.ATTEMPTS_EXCEEDED
    endless = replace(ALWAYS, attempts_max=0)
    assert judge_restart(ended(endless, restarts=Restarts(500, end=RunEnd.ITSELF)), 1100.0).next_at == 1400.0


@given(st.floats(-1e6, 1e6), st.integers(0, 2))
def test_whatever_the_clock_is_set_to_nobody_waits_for_more_than_twice_as_long(
    by_s: float, attempts: int
) -> None:
    now = 1100.0 + by_s  # It was 1100 when the run ended.
    verdict = judge_restart(ended(restarts=Restarts(attempts, end=RunEnd.ITSELF)), now)
    assert verdict.next_at is not None
    assert verdict.next_at - now <= 2 * ALWAYS.delay_s(attempts)
    if by_s > -ALWAYS.delay_s(attempts):
        assert verdict.next_at == 1100.0 + ALWAYS.delay_s(attempts)


@given(st.floats(0.1, 86_400.0), st.integers(0, 10_000))
def test_a_delay_grows_and_is_never_longer_than_five_minutes_or_than_was_asked_for(
    backoff_s: float, attempts: int
) -> None:
    policy = replace(ALWAYS, backoff_s=backoff_s)
    assert backoff_s <= policy.delay_s(attempts) <= policy.delay_s(attempts + 1) <= max(300.0, backoff_s)


def test_who_has_run_long_enough_begins_anew() -> None:
    restarts = Restarts(3, 1000.0, RunEnd.ITSELF, is_failing_health=True)
    assert judge_restart(ended(restarts=restarts), 1e9).blocked is Block.ATTEMPTS_EXCEEDED
    stable = ended(restarts=restarts, stopped_at=1600.0)
    assert judge_restart(stable, 1600.0) == RestartVerdict(0, 1605.0)
    assert settled(stable, 1600.0) == Restarts(end=RunEnd.ITSELF)
    running = replace(stable, state=State.RUNNING, stopped_at=None)
    assert [judge_restart(running, at).attempts for at in (1599.0, 1600.0)] == [3, 0]
    failed = ended(restarts=restarts, started_at=None)  # It did not even start.
    assert judge_restart(failed, 1e9).attempts == 3


def test_the_unhealthy_are_ended_as_long_as_they_can_be_started_again() -> None:
    running = ended(state=State.RUNNING, stopped_at=None, health=HealthStatus.UNHEALTHY, restarts=Restarts(2))
    assert may_end_for_health(running, 1100.0)
    spent = replace(running, restarts=Restarts(3))
    assert not may_end_for_health(spent, 1100.0)
    assert judge_restart(spent, 1100.0).blocked is Block.ATTEMPTS_EXCEEDED
    assert judge_restart(replace(spent, health=HealthStatus.HEALTHY), 1100.0).blocked is None
    for policy in (None, NEVER):
        assert not may_end_for_health(replace(running, spec=ended(policy).spec), 1100.0)
    assert not may_end_for_health(replace(running, state=State.PAUSED), 1100.0)


@pytest.mark.parametrize(
    "probe", [HttpProbe(80, "/up", "https", 204), TcpProbe(22), ExecProbe(("a", "b"), "/srv"), None]
)
def test_a_record_comes_back_as_it_was_written(probe: Probe | None) -> None:
    kind = {HttpProbe: "http", TcpProbe: "tcp", ExecProbe: "exec"}.get(type(probe), "")
    check = None if probe is None else HealthCheck(kind, probe, 10.0, 2.0, 30.0, 3, 1)
    record = ended(
        restarts=Restarts(2, 5.5, RunEnd.HEALTH, is_failing_health=True),
        health=HealthStatus.UNHEALTHY,
        phases=Phases("Stopped", 7.5, {"Running": 12}),
    )
    record = replace(record, spec=replace(record.spec, health_check=check))
    assert InstanceRecord.from_json(record.to_json()) == record
