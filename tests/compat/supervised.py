"""What is asked of a health check and of a restart policy, and what is answered."""

from typing import Any, Final

ASKED: Final[dict[str, Any]] = {
    "health_check": {
        "type": "exec",
        "exec": {"command": ["true"], "working_dir": "/"},
        "interval": "1s",
        "timeout": "30s",
        "start_period": "0s",
        "failure_threshold": 2,
        "success_threshold": 1,
    },
    "restart_policy": {"policy": "on_failure", "backoff": "1s", "max_attempts": 3, "stable_after": "1h"},
}


def check_made(made: Any) -> None:
    """Check that an instance which runs, and was asked for so, is shown so."""
    check, policy = made.health_check, made.restart_policy
    assert (check.type, check.exec.command, check.exec.working_dir) == ("exec", ["true"], "/")
    assert (check.interval, check.timeout, check.start_period) == ("1s", "30s", "0s")
    assert (check.failure_threshold, check.success_threshold) == (2, 1)
    assert (policy.policy, policy.backoff, policy.max_attempts) == ("on_failure", "1s", 3)
    assert (policy.stable_after, made.restart_status.attempts) == ("1h", 0)
    assert made.health_status.status in ("starting", "healthy")
    assert (made.current_phase, made.current_phase_since >= made.created_at) == ("running", True)
    assert made.phase_durations_ms.keys() == {"created", "initializing", "running"}
