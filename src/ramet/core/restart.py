"""When an instance whose run has ended is started again by itself, as it was asked for."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Self

BACKOFF_S_MIN: Final = 0.1
BACKOFF_S_MAX: Final = 86_400.0
BACKOFF_GROWN_S_MAX: Final = 300.0
"""To where a shorter back-off grows."""
ATTEMPTS_MAX: Final = 1_000_000
STABLE_AFTER_S_MAX: Final = 365 * 86_400.0


class RestartWhen(StrEnum):
    """After which ends of a run, in the words of the compatible API."""

    NEVER = "never"
    ALWAYS = "always"
    ON_FAILURE = "on_failure"


class RunEnd(StrEnum):
    """Who ended a run."""

    ITSELF = "itself"  # Its workload was done or failed, its VMM died, or it could not be started.
    REQUEST = "request"  # Somebody asked for it.
    HEALTH = "health"  # Its check failed.


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """It is started again `backoff_s` seconds after its run ended, and after twice that each further time.

    After `attempts_max` starts in a row, 0: never, that is given up. Whoever has run for `stable_after_s`
    begins anew.
    """

    when: RestartWhen
    backoff_s: float
    attempts_max: int
    stable_after_s: float

    def delay_s(self, attempts: int) -> float:
        """Return how long after a run's end the next is begun, when `attempts` have been made in a row."""
        limit_s = max(self.backoff_s, BACKOFF_GROWN_S_MAX)
        return min(limit_s, self.backoff_s * 2.0 ** min(attempts, 64))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: it did not.
        """
        return cls(
            RestartWhen(raw["when"]),
            float(raw["backoff_s"]),
            int(raw["attempts_max"]),
            float(raw["stable_after_s"]),
        )


@dataclass(frozen=True, slots=True)
class Restarts:
    """What has been done about an instance's ended runs; part of its record. Times are Unix seconds.

    Attributes:
        attempts: starts that nobody asked for, in a row.
        last_at: when the last of them was made.
        end: who ended the last run, or is ending this; None: nobody.
        is_failing_health: a failed check was the last that brought one about.
    """

    attempts: int = 0
    last_at: float | None = None
    end: RunEnd | None = None
    is_failing_health: bool = False

    def ended(self, by: RunEnd) -> Self:
        """Return these when `by` ends the run, unless somebody else has begun to."""
        if self.end is not None:
            return self
        return replace(self, end=by, is_failing_health=self.is_failing_health or by is RunEnd.HEALTH)

    def attempted(self, at: float) -> Self:
        """Return these when one more start is being made."""
        return replace(self, attempts=self.attempts + 1, last_at=at, end=None)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: it did not.
        """
        end = raw["end"]
        return cls(
            int(raw["attempts"]),
            None if raw["last_at"] is None else float(raw["last_at"]),
            None if end is None else RunEnd(end),
            bool(raw["is_failing_health"]),
        )
