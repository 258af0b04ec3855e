"""Instances that are started again by themselves: their policy on the wire, and how it stands."""

from typing import Final

from ramet.api.bounds import bounded_count, bounded_duration
from ramet.api.times import shown_time
from ramet.core.errors import Invalid
from ramet.core.restart import (
    ATTEMPTS_MAX,
    BACKOFF_S_MAX,
    BACKOFF_S_MIN,
    STABLE_AFTER_S_MAX,
    RestartPolicy,
    RestartWhen,
)
from ramet.core.spec import InstanceRecord
from ramet.core.supervision import judge_restart
from ramet.core.units import format_duration
from ramet.wire_api import supervision as wire

DEFAULT: Final = RestartPolicy(RestartWhen.NEVER, backoff_s=5.0, attempts_max=0, stable_after_s=600.0)
HEALTH_CHECK_FAILED: Final = "health_check_failed"
_FIELD: Final = "restart_policy"


def to_restart_policy(
    body: wire.RestartPolicy | None, before: RestartPolicy | None = None
) -> RestartPolicy | None:
    """Return the policy that a request gives; what it does not say is as `before`. None: none.

    Raises:
        Invalid: there is no such policy, or a time or number is out of bounds.
    """
    if body is None:
        return before
    before = before or DEFAULT
    return RestartPolicy(
        before.when if body.policy is None else _to_when(body.policy),
        bounded_duration(f"{_FIELD}.backoff", body.backoff, before.backoff_s, BACKOFF_S_MIN, BACKOFF_S_MAX),
        bounded_count(f"{_FIELD}.max_attempts", body.max_attempts, before.attempts_max, 0, ATTEMPTS_MAX),
        bounded_duration(
            f"{_FIELD}.stable_after", body.stable_after, before.stable_after_s, 0.0, STABLE_AFTER_S_MAX
        ),
    )


def _to_when(text: str) -> RestartWhen:
    try:
        return RestartWhen(text)
    except ValueError as error:
        raise Invalid(
            f"{text[:40]!r} is no restart policy",
            remedy=f"use one of {', '.join(RestartWhen)}",
            field=f"{_FIELD}.policy",
        ) from error


def shown_restart_policy(policy: RestartPolicy | None) -> wire.RestartPolicy | None:
    """Return a policy as the API shows it."""
    if policy is None:
        return None
    return wire.RestartPolicy(
        policy.when.value,
        format_duration(policy.backoff_s),
        policy.attempts_max,
        format_duration(policy.stable_after_s),
    )


def shown_restart_status(record: InstanceRecord, now: float) -> wire.RestartStatus | None:
    """Return what came of an instance's policy until `now`, in Unix seconds; None: it has none."""
    if record.spec.restart_policy is None:
        return None
    verdict = judge_restart(record, now)
    return wire.RestartStatus(
        attempts=verdict.attempts,
        last_attempt_at=shown_time(record.restarts.last_at),
        next_attempt_at=shown_time(verdict.next_at),
        blocked_reason=None if verdict.blocked is None else verdict.blocked.value,
        last_reason=HEALTH_CHECK_FAILED if record.restarts.is_failing_health else None,
    )
