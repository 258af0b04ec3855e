"""How much memory guests have been asked to give back to the host, and until when."""

import json
from dataclasses import asdict, dataclass
from typing import Final, Self

from ramet.core.ids import InstanceId

MIB: Final = 1 << 20
"""What balloons are counted in."""
HOLD_S_DEFAULT: Final = 300.0
HOLD_S_MIN: Final = 1.0
HOLD_S_MAX: Final = 7 * 86_400.0
REASON_LENGTH_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """A running guest: what it was given, and how much of it it has last been asked to give back.

    `unsupported` says why it cannot be asked for more than it gives already, `error` why nobody can tell;
    both are empty of one that can.
    """

    instance: InstanceId
    name: str
    hypervisor: str
    assigned_bytes: int
    balloon_bytes: int = 0
    unsupported: str = ""
    error: str = ""

    @property
    def target_bytes(self) -> int:
        """How much it is to get along with."""
        return self.assigned_bytes - self.balloon_bytes


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What this host has, and what it could give to somebody new."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class ReclaimHold:
    """What guests were asked to give back in all, and until when in Unix seconds; then they have it again."""

    until: float
    reclaim_bytes: int
    reason: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it was not.
        """
        raw = json.loads(text)
        return cls(float(raw["until"]), int(raw["reclaim_bytes"]), str(raw["reason"]))
