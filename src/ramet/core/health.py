"""How the host finds out whether a workload does well, as it was asked for, and what it has found."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

INTERVAL_S_MIN: Final = 1.0
INTERVAL_S_MAX: Final = 86_400.0
TIMEOUT_S_MIN: Final = 0.1
TIMEOUT_S_MAX: Final = 60.0
START_PERIOD_S_MAX: Final = 86_400.0
THRESHOLD_MAX: Final = 1000
ERROR_LENGTH_MAX: Final = 256
"""Of the characters that are kept of why a check failed."""


class HealthStatus(StrEnum):
    """How a workload does, in the words of the compatible API."""

    DISABLED = "disabled"  # Nobody asks.
    STARTING = "starting"  # Not asked often enough yet.
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"  # It does not run, so it cannot be asked.


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """An answer with `expected_status` to GET `path` is success; of https, any certificate will do."""

    port: int
    path: str = "/"
    scheme: str = "http"
    expected_status: int = 200


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """A connection that is accepted is success."""

    port: int


@dataclass(frozen=True, slots=True)
class ExecProbe:
    """A command in the guest that exits with 0 is success. `cwd` None: the workload's own."""

    argv: tuple[str, ...]
    cwd: str | None = None


Probe = HttpProbe | TcpProbe | ExecProbe

_KINDS: Final = {"http": HttpProbe, "tcp": TcpProbe, "exec": ExecProbe}


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """It is asked `interval_s` seconds after the last answer, which it has `timeout_s` to give.

    It is unhealthy after `failure_threshold` failures in a row, but not before it has run for
    `start_period_s`; healthy after `success_threshold` successes in a row. `kind` tells what `probe` is.
    """

    kind: str
    probe: Probe
    interval_s: float
    timeout_s: float
    start_period_s: float
    failure_threshold: int
    success_threshold: int

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: it did not.
        """
        kind, found = str(raw["kind"]), dict(raw["probe"])
        if kind == "exec":
            found["argv"] = tuple(found["argv"])
        return cls(**{**raw, "probe": _KINDS[kind](**found)})


@dataclass(frozen=True, slots=True)
class Health:
    """What checks have found. Times are Unix seconds; `last_error` is of the last that failed."""

    status: HealthStatus
    successes: int = 0
    failures: int = 0
    last_checked_at: float | None = None
    last_success_at: float | None = None
    last_failure_at: float | None = None
    last_error: str = ""
