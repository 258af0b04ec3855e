"""Instances that sleep by themselves: their policy on the wire, and the calls on it."""

import time
from ipaddress import IPv4Network
from typing import Final

from fastapi import APIRouter

from ramet.api.bounds import about
from ramet.api.ports import IdlePort
from ramet.api.times import shown_time
from ramet.core.auto_standby import (
    IDLE_TIMEOUT_S_MAX,
    IDLE_TIMEOUT_S_MIN,
    IGNORED_COUNT_MAX,
    AutoStandby,
)
from ramet.core.errors import Invalid
from ramet.core.units import format_duration, parse_duration
from ramet.policies.auto_standby import Status
from ramet.policies.idle import TRACKING_MODE, IdleStatus
from ramet.wire_api import auto_standby as wire
from ramet.wire_api.errors import Error

IDLE_TIMEOUT_S_DEFAULT: Final = 300.0
_PORT_MAX: Final = 65_535
_ELIGIBLE: Final = frozenset({Status.ACTIVE, Status.IDLE_COUNTDOWN, Status.READY, Status.REQUESTED})


def router(idle: IdlePort) -> APIRouter:
    """Return the routes on sleeping by itself."""
    routes = APIRouter(prefix="/instances", tags=["instances"], responses={"default": {"model": Error}})

    @routes.get("/{id}/auto-standby/status")
    async def get_auto_standby_status(id: str) -> wire.AutoStandbyStatus:
        return to_status(idle.status(id), time.time())

    @routes.post("/{id}/auto-standby/hold")
    async def hold_auto_standby(id: str) -> wire.AutoStandbyStatus:
        return to_status(idle.hold(id), time.time())

    return routes


def to_auto_standby(
    body: wire.AutoStandbyPolicy | None, before: AutoStandby | None = None
) -> AutoStandby | None:
    """Return the policy that a request gives; what it does not say is as `before`. None: none.

    Raises:
        Invalid: the time is none or out of bounds, or something that is to be ignored can never come.
    """
    if body is None:
        return before
    before = before or AutoStandby(False, IDLE_TIMEOUT_S_DEFAULT)
    asked, sources, ports = body.idle_timeout, body.ignore_source_cidrs, body.ignore_destination_ports
    with about("auto_standby.idle_timeout"):
        idle_timeout_s = before.idle_timeout_s if asked is None else parse_duration(asked)
    if not IDLE_TIMEOUT_S_MIN <= idle_timeout_s <= IDLE_TIMEOUT_S_MAX:
        raise Invalid(
            f"idle_timeout is {asked!r:.40}",
            remedy="use a duration from 1s to a year",
            field="auto_standby.idle_timeout",
        )
    return AutoStandby(
        before.is_enabled if body.enabled is None else body.enabled,
        idle_timeout_s,
        before.ignored_sources if sources is None else _sources(sources),
        before.ignored_ports if ports is None else _ports(ports),
        before.wakes_on_traffic if body.wake_on_traffic is None else body.wake_on_traffic,
    )


def _sources(texts: tuple[str, ...]) -> tuple[str, ...]:
    field = "auto_standby.ignore_source_cidrs"
    _check_count(len(texts), field)
    try:
        return tuple(str(IPv4Network(text)) for text in texts)
    except ValueError as error:
        raise Invalid(f"{error}", remedy="write networks like 10.0.0.0/8", field=field) from error


def _ports(ports: tuple[int, ...]) -> tuple[int, ...]:
    field = "auto_standby.ignore_destination_ports"
    _check_count(len(ports), field)
    for port in ports:
        if not 1 <= port <= _PORT_MAX:
            raise Invalid(f"{port} is no port", remedy=f"use ports from 1 to {_PORT_MAX}", field=field)
    return ports


def _check_count(count: int, field: str) -> None:
    if count > IGNORED_COUNT_MAX:
        raise Invalid(f"{field} has {count} entries", remedy=f"use {IGNORED_COUNT_MAX} at most", field=field)


def shown_auto_standby(policy: AutoStandby | None) -> wire.AutoStandbyPolicy | None:
    """Return a policy as the API shows it."""
    if policy is None:
        return None
    return wire.AutoStandbyPolicy(
        policy.is_enabled,
        format_duration(policy.idle_timeout_s),
        policy.ignored_sources,
        policy.ignored_ports,
        policy.wakes_on_traffic,
    )


def to_status(found: IdleStatus, now: float) -> wire.AutoStandbyStatus:
    """Return how it stands with an instance at `now`, in Unix seconds, as the API shows it."""
    policy, verdict = found.policy, found.verdict
    at = verdict.next_standby_at
    return wire.AutoStandbyStatus(
        supported=True,
        configured=policy is not None,
        enabled=policy is not None and policy.is_enabled,
        eligible=verdict.status in _ELIGIBLE,
        status=verdict.status.value,
        reason=verdict.reason.value,
        active_inbound_connections=found.inbound_count,
        tracking_mode=TRACKING_MODE,
        idle_timeout=None if policy is None else format_duration(policy.idle_timeout_s),
        idle_since=shown_time(found.idle_since),
        last_inbound_activity_at=shown_time(found.last_inbound_at),
        next_standby_at=shown_time(at),
        hold_until=shown_time(found.hold_until),
        countdown_remaining=None if at is None else format_duration(max(0.0, at - now)),
        wake_on_traffic=found.traffic.is_woken,
        wake_armed=found.traffic.is_armed,
        wake_error=found.traffic.error or None,
    )
