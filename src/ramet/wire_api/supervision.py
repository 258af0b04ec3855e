"""Health checks and restart policies, as the API says them. Durations such as "10s", times in RFC 3339."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """GET `path` at `port` of the instance's address is to be answered with `expected_status`."""

    port: int
    path: str | None = None
    scheme: str | None = None
    expected_status: int | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """`port` of the instance's address is to accept a connection."""

    port: int

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class ExecCheck:
    """`command` is to exit with 0 in the guest, run in `working_dir` or where the workload runs."""

    command: tuple[str, ...]
    working_dir: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How an instance is asked whether it does well; of `type` "none", it is not asked.

    The next check begins `interval` after the last has ended, which is `timeout` later at the latest.
    """

    type: str | None = None
    http: HttpCheck | None = None
    tcp: TcpCheck | None = None
    exec: ExecCheck | None = None
    interval: str | None = None
    timeout: str | None = None
    start_period: str | None = None
    failure_threshold: int | None = None
    success_threshold: int | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """How an instance does: disabled, starting, healthy, unhealthy, or unknown because it does not run."""

    status: str
    consecutive_successes: int
    consecutive_failures: int
    last_checked_at: str | None = None
    last_success_at: str | None = None
    last_failure_at: str | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When an instance is started again by itself: `policy` is never, always or on_failure."""

    policy: str | None = None
    backoff: str | None = None
    max_attempts: int | None = None
    stable_after: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class RestartStatus:
    """What came of a restart policy: how often in a row, when next, and why not."""

    attempts: int
    last_attempt_at: str | None = None
    next_attempt_at: str | None = None
    blocked_reason: str | None = None
    last_reason: str | None = None
