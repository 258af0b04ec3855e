"""How long an instance has been in each of its states, over all of its life."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Phases:
    """The state it is in, as the API names it, since when in Unix seconds, and how long it was in each.

    `ended_ms` holds whole milliseconds by state, without the time in `state`. A clock that was set back makes
    no time go away.
    """

    state: str
    since: float
    ended_ms: Mapping[str, int] = field(default_factory=dict)

    def moved(self, state: str, at: float) -> Self:
        """Return the phases of an instance that came to `state` at `at`; the same if it was there already."""
        if state == self.state:
            return self
        return type(self)(state, at, self.durations_ms(at))

    def durations_ms(self, now: float) -> Mapping[str, int]:
        """Return how long it has been in each state until `now`."""
        spent_ms = max(0, round((now - self.since) * 1000))
        return {**self.ended_ms, self.state: self.ended_ms.get(self.state, 0) + spent_ms}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: it did not.
        """
        ended_ms = {str(state): int(spent_ms) for state, spent_ms in raw["ended_ms"].items()}
        return cls(str(raw["state"]), float(raw["since"]), ended_ms)
