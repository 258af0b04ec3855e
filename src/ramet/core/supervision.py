"""Whether an instance is to be started again by itself, and when: pure functions of its record."""

from dataclasses import dataclass
from enum import StrEnum

from ramet.core.health import HealthStatus
from ramet.core.restart import RestartPolicy, Restarts, RestartWhen, RunEnd
from ramet.core.spec import InstanceRecord, State


class Block(StrEnum):
    """Why an instance is not started again, in the words of the compatible API."""

    MANUAL_STOP = "manual_stop"
    ATTEMPTS_EXCEEDED = "max_attempts_exceeded"


@dataclass(frozen=True, slots=True)
class RestartVerdict:
    """How it stands: `attempts` in a row; it starts at `next_at`, in Unix seconds, None: not by itself."""

    attempts: int
    next_at: float | None = None
    blocked: Block | None = None


def judge_restart(record: InstanceRecord, now: float) -> RestartVerdict:
    """Say how it stands with an instance; the record holds all it needs, so our own restart loses nothing."""
    policy, end = record.spec.restart_policy, record.restarts.end
    attempts = settled(record, now).attempts
    if policy is None or policy.when is RestartWhen.NEVER:
        return RestartVerdict(attempts)
    if end is RunEnd.REQUEST:
        return RestartVerdict(attempts, blocked=Block.MANUAL_STOP)
    is_spent = 0 < policy.attempts_max <= attempts
    has_ended = _has_ended(record) and _covers(policy, record)
    is_failing = record.state is State.RUNNING and record.health is HealthStatus.UNHEALTHY
    if is_spent and (has_ended or is_failing):
        return RestartVerdict(attempts, blocked=Block.ATTEMPTS_EXCEEDED)
    if not has_ended:
        return RestartVerdict(attempts)
    return RestartVerdict(attempts, _next_at(record.stopped_at or 0.0, policy.delay_s(attempts), now))


def _next_at(ended_at: float, delay_s: float, now: float) -> float:
    """Return when a run begins that is to follow `delay_s` after the end of another.

    An end further ahead than that was told by a clock that has been set back since: nobody knows how long ago
    it was, so it is now. So nobody waits longer than twice as long as is meant.
    """
    return ended_at + delay_s if ended_at - now <= delay_s else now


def may_end_for_health(record: InstanceRecord, now: float) -> bool:
    """Tell whether a running instance whose check fails is to be stopped, to be started again."""
    policy = record.spec.restart_policy
    if policy is None or policy.when is RestartWhen.NEVER or record.state is not State.RUNNING:
        return False
    return not 0 < policy.attempts_max <= settled(record, now).attempts


def settled(record: InstanceRecord, at: float) -> Restarts:
    """Return what has been done about its ended runs; of one that has run long enough, nothing counts."""
    return record.restarts if _is_unstable(record, at) else Restarts(end=record.restarts.end)


def _is_unstable(record: InstanceRecord, now: float) -> bool:
    policy, began = record.spec.restart_policy, record.started_at
    if policy is None or began is None:
        return True
    ended = now if record.stopped_at is None else record.stopped_at
    return ended - began < policy.stable_after_s


def _has_ended(record: InstanceRecord) -> bool:
    return (
        record.state is State.STOPPED
        and record.restarts.end is not None
        and record.layer is not None
        and record.becoming is None
        and not record.is_deleting
    )


def _covers(policy: RestartPolicy, record: InstanceRecord) -> bool:
    """Tell whether the policy is about the end that its run has come to."""
    is_success = record.exit is not None and record.exit.code == 0
    return policy.when is RestartWhen.ALWAYS or record.restarts.end is RunEnd.HEALTH or not is_success
