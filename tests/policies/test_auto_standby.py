"""When an idle instance is to sleep: each status with its reason."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from ramet.core.auto_standby import AutoStandby
from ramet.policies.auto_standby import Facts, Reason, Status, judge

POLICY = AutoStandby(True, 60.0)
IDLE = Facts(
    is_running=True,
    has_network=True,
    is_observed=True,
    is_busy=False,
    idle_since=1000.0,
    hold_until=None,
    is_requested=False,
)


@pytest.mark.parametrize(
    ("policy", "facts", "status", "reason"),
    [
        (None, IDLE, Status.DISABLED, Reason.POLICY_MISSING),
        (replace(POLICY, is_enabled=False), IDLE, Status.DISABLED, Reason.POLICY_DISABLED),
        (POLICY, replace(IDLE, has_network=False), Status.INELIGIBLE, Reason.NETWORK_DISABLED),
        (POLICY, replace(IDLE, is_running=False), Status.INELIGIBLE, Reason.NOT_RUNNING),
        (POLICY, replace(IDLE, is_requested=True), Status.REQUESTED, Reason.READY),
        (POLICY, replace(IDLE, is_running=False, is_requested=True), Status.REQUESTED, Reason.READY),
        (POLICY, replace(IDLE, is_observed=False), Status.ERROR, Reason.OBSERVER_ERROR),
        (POLICY, replace(IDLE, is_busy=True), Status.ACTIVE, Reason.ACTIVE),
        (POLICY, replace(IDLE, idle_since=None), Status.ACTIVE, Reason.ACTIVE),
    ],
)
def test_who_is_not_due_is_told_why(
    policy: AutoStandby | None, facts: Facts, status: Status, reason: Reason
) -> None:
    verdict = judge(policy, facts, 5000.0)
    assert (verdict.status, verdict.reason, verdict.next_standby_at) == (status, reason, None)


@pytest.mark.parametrize(
    ("now", "hold_until", "status", "at"),
    [
        (1000.0, None, Status.IDLE_COUNTDOWN, 1060.0),
        (1059.9, None, Status.IDLE_COUNTDOWN, 1060.0),
        (1060.0, None, Status.READY, 1060.0),
        (1060.0, 1100.0, Status.IDLE_COUNTDOWN, 1100.0),
        (1100.0, 1100.0, Status.READY, 1100.0),
        (1030.0, 1020.0, Status.IDLE_COUNTDOWN, 1060.0),
    ],
)
def test_it_sleeps_when_its_time_is_over_and_no_promise_is_left(
    now: float, hold_until: float | None, status: Status, at: float
) -> None:
    verdict = judge(POLICY, replace(IDLE, hold_until=hold_until), now)
    assert (verdict.status, verdict.next_standby_at) == (status, at)


@pytest.mark.parametrize(
    ("client", "port", "counts"),
    [("10.0.0.1", 80, False), ("10.9.0.1", 80, True), ("192.0.2.1", 9100, False), ("192.0.2.1", 80, True)],
)
def test_ignored_sources_and_ports_do_not_count(client: str, port: int, counts: bool) -> None:
    policy = AutoStandby(True, 60.0, ("10.0.0.0/16",), (9100,))
    assert policy.counts(IPv4Address(client), port) == counts
