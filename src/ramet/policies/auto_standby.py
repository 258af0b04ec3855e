"""Whether an idle instance is to sleep now, and if not, why: a pure function.

Statuses and reasons are the words of the compatible API.
"""

from dataclasses import dataclass
from enum import StrEnum

from ramet.core.auto_standby import AutoStandby


class Status(StrEnum):
    """How far an instance is from sleeping by itself."""

    DISABLED = "disabled"
    INELIGIBLE = "ineligible"
    ACTIVE = "active"
    IDLE_COUNTDOWN = "idle_countdown"
    READY = "ready_for_standby"
    REQUESTED = "standby_requested"
    ERROR = "error"


class Reason(StrEnum):
    """Why it is that far."""

    POLICY_MISSING = "policy_missing"
    POLICY_DISABLED = "policy_disabled"
    NOT_RUNNING = "instance_not_running"
    NETWORK_DISABLED = "network_disabled"
    ACTIVE = "active_inbound_connections"
    COUNTDOWN = "idle_timeout_not_elapsed"
    OBSERVER_ERROR = "observer_error"
    READY = "ready_for_standby"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an instance. Times are Unix seconds.

    Attributes:
        is_observed: its connections are known.
        is_busy: somebody is connected, or works in it in a way that counts.
        idle_since: since when it is not; None: it is, or it was not looked at yet.
        hold_until: it was promised to be awake until then.
        is_requested: it is on its way to sleep.
    """

    is_running: bool
    has_network: bool
    is_observed: bool
    is_busy: bool
    idle_since: float | None
    hold_until: float | None
    is_requested: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it stands; `next_standby_at` is when it will sleep if nothing happens, None: not by itself."""

    status: Status
    reason: Reason
    next_standby_at: float | None = None


def judge(policy: AutoStandby | None, facts: Facts, now: float) -> Verdict:
    """Say how it stands with an instance."""
    if policy is None:
        return Verdict(Status.DISABLED, Reason.POLICY_MISSING)
    if not policy.is_enabled:
        return Verdict(Status.DISABLED, Reason.POLICY_DISABLED)
    if not facts.has_network:
        return Verdict(Status.INELIGIBLE, Reason.NETWORK_DISABLED)
    if facts.is_requested:
        return Verdict(Status.REQUESTED, Reason.READY)
    if not facts.is_running:
        return Verdict(Status.INELIGIBLE, Reason.NOT_RUNNING)
    if not facts.is_observed:
        return Verdict(Status.ERROR, Reason.OBSERVER_ERROR)
    if facts.is_busy or facts.idle_since is None:
        return Verdict(Status.ACTIVE, Reason.ACTIVE)
    at = max(facts.idle_since + policy.idle_timeout_s, facts.hold_until or 0.0)
    if now < at:
        return Verdict(Status.IDLE_COUNTDOWN, Reason.COUNTDOWN, at)
    return Verdict(Status.READY, Reason.READY, at)
