"""What a check says: a row of them makes healthy, another unhealthy, and none too early."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ramet.core.health import ERROR_LENGTH_MAX, Health, HealthCheck, HealthStatus, TcpProbe
from ramet.policies.health import judge_check

CHECK = HealthCheck("tcp", TcpProbe(80), 10.0, 2.0, 30.0, failure_threshold=3, success_threshold=2)
NEW = Health(HealthStatus.STARTING)


def after(outcomes: str, ran_s: float = 100.0, health: Health = NEW) -> Health:
    """Return how it does after these, `+` for a success."""
    for number, outcome in enumerate(outcomes):
        health = judge_check(CHECK, health, "" if outcome == "+" else "no", ran_s, float(number))
    return health


def test_so_many_in_a_row_say_how_it_does() -> None:
    found = ["+", "++", "++-", "++--", "++---", "---+", "---++", "-+-+-+--"]
    assert [after(outcomes).status.value for outcomes in found] == [
        "starting",
        "healthy",
        "healthy",
        "healthy",
        "unhealthy",
        "unhealthy",
        "healthy",
        "starting",
    ]


def test_nothing_is_unhealthy_before_its_time_and_what_failed_until_then_counts() -> None:
    early = after("-----", ran_s=29.0)
    assert (early.status, early.failures) == (HealthStatus.STARTING, 5)
    assert after("-", ran_s=30.0, health=early).status is HealthStatus.UNHEALTHY
    assert after("++---", ran_s=29.0).status is HealthStatus.HEALTHY


def test_what_is_told_of_checks() -> None:
    found = after("+--")
    assert found == Health(HealthStatus.STARTING, 0, 2, 2.0, 0.0, 2.0, "no")
    assert after("+", health=found) == replace(
        found, successes=1, failures=0, last_checked_at=0.0, last_success_at=0.0
    )
    assert judge_check(CHECK, NEW, "x" * 9999, 0.0, 1.0).last_error == "x" * ERROR_LENGTH_MAX


@given(st.text("+-"))
def test_only_a_whole_row_changes_how_it_does(outcomes: str) -> None:
    before, health = NEW, NEW
    for outcome in outcomes:
        before, health = health, after(outcome, health=health)
        assert health.successes == 0 or health.failures == 0
        if health.status is HealthStatus.HEALTHY is not before.status:
            assert health.successes >= CHECK.success_threshold
        if health.status is HealthStatus.UNHEALTHY is not before.status:
            assert health.failures >= CHECK.failure_threshold
