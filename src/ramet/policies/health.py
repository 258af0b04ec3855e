"""What one more check says about an instance: a pure function."""

from dataclasses import replace

from ramet.core.health import ERROR_LENGTH_MAX, Health, HealthCheck, HealthStatus


def judge_check(check: HealthCheck, before: Health, error: str, ran_s: float, now: float) -> Health:
    """Return how an instance does when a check has ended at `now`, in Unix seconds.

    Args:
        error: why the check failed; empty: it did not.
        ran_s: how long the instance had run then.
    """
    if not error:
        successes = before.successes + 1
        is_healthy = before.status is HealthStatus.HEALTHY or successes >= check.success_threshold
        return replace(
            before,
            status=HealthStatus.HEALTHY if is_healthy else before.status,
            successes=successes,
            failures=0,
            last_checked_at=now,
            last_success_at=now,
        )
    failures = before.failures + 1
    is_unhealthy = before.status is HealthStatus.UNHEALTHY or (
        failures >= check.failure_threshold and ran_s >= check.start_period_s
    )
    return replace(
        before,
        status=HealthStatus.UNHEALTHY if is_unhealthy else before.status,
        successes=0,
        failures=failures,
        last_checked_at=now,
        last_failure_at=now,
        last_error=error[:ERROR_LENGTH_MAX],
    )
