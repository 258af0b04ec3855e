"""When instances sleep by themselves, as the API says it. Durations such as "5m", times in RFC 3339."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class AutoStandbyPolicy:
    """It sleeps when it has had no inbound TCP connection for `idle_timeout`; on if `enabled`.

    Connections from `ignore_source_cidrs`, and to `ignore_destination_ports`, do not count. With
    `wake_on_traffic` the first packet of one that counts wakes it, also after a standby that was asked for;
    null: as the server's setting says.
    """

    enabled: bool | None = None
    idle_timeout: str | None = None
    ignore_source_cidrs: tuple[str, ...] | None = None
    ignore_destination_ports: tuple[int, ...] | None = None
    wake_on_traffic: bool | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class AutoStandbyStatus:
    """How far an instance is from sleeping by itself, and why.

    `wake_on_traffic`: whether a connection wakes it; `wake_armed`: whether it sleeps and waits for one now;
    `wake_error`: why it could not be woken, or wait, last.
    """

    supported: bool
    configured: bool
    enabled: bool
    eligible: bool
    status: str
    reason: str
    active_inbound_connections: int
    tracking_mode: str
    idle_timeout: str | None = None
    idle_since: str | None = None
    last_inbound_activity_at: str | None = None
    next_standby_at: str | None = None
    hold_until: str | None = None
    countdown_remaining: str | None = None
    wake_on_traffic: bool = False
    wake_armed: bool = False
    wake_error: str | None = None
