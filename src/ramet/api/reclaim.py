"""The call that takes memory back from guests."""

from fastapi import APIRouter

from ramet.api.bounds import about
from ramet.api.ports import ReclaimPort
from ramet.api.times import shown_time
from ramet.core.errors import Invalid
from ramet.core.guest_memory import HOLD_S_DEFAULT, HOLD_S_MAX, HOLD_S_MIN, REASON_LENGTH_MAX
from ramet.core.units import AMOUNT_MAX, parse_duration
from ramet.policies.reclaiming import Reclaimed, Taken
from ramet.wire_api import reclaim as wire
from ramet.wire_api.errors import Error


def router(reclaims: ReclaimPort) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["resources"], responses={"default": {"model": Error}})

    @routes.post("/resources/memory/reclaim")
    async def reclaim_memory(body: wire.ReclaimMemory) -> wire.MemoryReclaim:
        hold_s, reason = _check(body), body.reason or ""
        is_dry_run = body.dry_run is True
        return to_wire(
            await reclaims.reclaim(body.reclaim_bytes, hold_s, is_dry_run=is_dry_run, reason=reason)
        )

    return routes


def _check(body: wire.ReclaimMemory) -> float:
    """Return for how many seconds memory is to be held.

    Raises:
        Invalid: that is no time, or out of bounds; or the amount is, or the reason is too long.
    """
    if not 0 <= body.reclaim_bytes <= AMOUNT_MAX:
        raise Invalid(
            f"reclaim_bytes is {body.reclaim_bytes}",
            remedy="use a number of bytes; 0 gives everything back to the guests",
            field="reclaim_bytes",
        )
    with about("hold_for"):
        hold_s = HOLD_S_DEFAULT if body.hold_for is None else parse_duration(body.hold_for)
    if not HOLD_S_MIN <= hold_s <= HOLD_S_MAX:
        raise Invalid(
            f"hold_for is {body.hold_for!r:.40}", remedy="use a duration from 1s to 168h", field="hold_for"
        )
    if body.reason is not None and len(body.reason) > REASON_LENGTH_MAX:
        raise Invalid(
            f"reason has {len(body.reason)} characters",
            remedy=f"use {REASON_LENGTH_MAX} at most",
            field="reason",
        )
    return hold_s


def to_wire(found: Reclaimed) -> wire.MemoryReclaim:
    """Return what came of a request as the API shows it."""
    return wire.MemoryReclaim(
        requested_reclaim_bytes=found.requested_bytes,
        planned_reclaim_bytes=found.planned_bytes,
        applied_reclaim_bytes=found.applied_bytes,
        host_available_bytes=found.host.available_bytes,
        host_pressure_state=found.pressure.value,
        actions=tuple(_to_action(one) for one in found.taken),
        hold_until=shown_time(found.hold_until),
    )


def _to_action(taken: Taken) -> wire.ReclaimAction:
    step, guest = taken.step, taken.step.guest
    return wire.ReclaimAction(
        instance_id=guest.instance,
        instance_name=guest.name,
        hypervisor=guest.hypervisor,
        status=taken.status.value,
        assigned_memory_bytes=guest.assigned_bytes,
        protected_floor_bytes=step.floor_bytes,
        previous_target_guest_memory_bytes=guest.target_bytes,
        planned_target_guest_memory_bytes=step.target_bytes,
        target_guest_memory_bytes=taken.target_bytes,
        applied_reclaim_bytes=taken.applied_bytes,
        error=taken.error or None,
    )
