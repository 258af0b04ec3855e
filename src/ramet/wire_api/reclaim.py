"""Taking memory back from guests, as requests ask for it and as the API tells what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ReclaimMemory:
    """The body of `POST /resources/memory/reclaim`: `reclaim_bytes` in all, for `hold_for`, by default 5m.

    Of 0 bytes, guests have all of their memory again. With `dry_run` nothing is changed.
    """

    reclaim_bytes: int
    hold_for: str | None = None
    dry_run: bool | None = None
    reason: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class ReclaimAction:
    """What came of asking one guest. `status` planned, applied, unchanged, unsupported or error.

    Targets are what a guest is to get along with of `assigned_memory_bytes`: before, as planned, and now.
    `applied_reclaim_bytes` is what it gives back now, in all.
    """

    instance_id: str
    instance_name: str
    hypervisor: str
    status: str
    assigned_memory_bytes: int
    protected_floor_bytes: int
    previous_target_guest_memory_bytes: int
    planned_target_guest_memory_bytes: int
    target_guest_memory_bytes: int
    applied_reclaim_bytes: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryReclaim:
    """What came of a request, of all guests that run. `hold_until` in RFC 3339, null if nothing is held."""

    requested_reclaim_bytes: int
    planned_reclaim_bytes: int
    applied_reclaim_bytes: int
    host_available_bytes: int
    host_pressure_state: str
    actions: tuple[ReclaimAction, ...]
    hold_until: str | None = None
