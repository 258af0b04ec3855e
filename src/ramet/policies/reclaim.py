"""Which guest is to give back how much memory, and whether the host is short of it: pure functions.

Every guest keeps a protected floor. What is above it is asked for in proportion, so that no guest is emptied
while another has plenty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ramet.core.guest_memory import MIB, GuestMemory, HostMemory


class PressureState(StrEnum):
    """Whether the host is short of memory, as the API names it."""

    HEALTHY = "healthy"
    PRESSURE = "pressure"


@dataclass(frozen=True, slots=True)
class ReclaimConfig:
    """What no guest is asked for, and when the host is short.

    A guest keeps `floor_percent` of its memory, and `floor_bytes_min` at least. Under
    `high_watermark_percent` of available memory the host is short, and until there is
    `low_watermark_percent` again.
    """

    is_enabled: bool = True
    floor_percent: int = 50
    floor_bytes_min: int = 512 * MIB
    high_watermark_percent: int = 10
    low_watermark_percent: int = 15


@dataclass(frozen=True, slots=True)
class Step:
    """What one guest is asked for: to get along with `target_bytes`; it always keeps its floor."""

    guest: GuestMemory
    floor_bytes: int
    target_bytes: int

    @property
    def balloon_bytes(self) -> int:
        """How much it is to give back in all."""
        return self.guest.assigned_bytes - self.target_bytes


def floor_bytes(assigned_bytes: int, config: ReclaimConfig) -> int:
    """Return what a guest keeps whatever is asked for, in whole MiB."""
    share = -(-assigned_bytes * config.floor_percent // 100 // MIB) * MIB
    return min(assigned_bytes, max(share, config.floor_bytes_min))


def plan(guests: Sequence[GuestMemory], wanted_bytes: int, config: ReclaimConfig) -> list[Step]:
    """Return what each guest is to give back, so that it is `wanted_bytes` in all, or as much as there is.

    In whole MiB. Who cannot be asked stays as it is, and what it has given already does not count.
    """
    floors = [floor_bytes(guest.assigned_bytes, config) for guest in guests]
    spare = [
        0 if guest.unsupported or guest.error else (guest.assigned_bytes - floor) // MIB
        for guest, floor in zip(guests, floors, strict=True)
    ]
    shares = _shares(spare, -(-wanted_bytes // MIB))
    return [
        Step(
            guest,
            floor,
            guest.target_bytes if guest.unsupported or guest.error else guest.assigned_bytes - share * MIB,
        )
        for guest, floor, share in zip(guests, floors, shares, strict=True)
    ]


def _shares(spare: Sequence[int], wanted: int) -> list[int]:
    """Divide what is wanted in proportion to what is there to spare; the rest goes to the largest first."""
    total = sum(spare)
    if wanted >= total:
        return list(spare)
    shares = [wanted * each // total for each in spare]
    largest_first = sorted(range(len(spare)), key=lambda index: spare[index], reverse=True)
    for index in largest_first[: wanted - sum(shares)]:
        shares[index] += 1
    return shares


def pressure(host: HostMemory, before: PressureState, config: ReclaimConfig) -> PressureState:
    """Return whether the host is short of memory now, as it was `before` or not."""
    percent = 100 * host.available_bytes / host.total_bytes
    enough = (
        config.low_watermark_percent if before is PressureState.PRESSURE else config.high_watermark_percent
    )
    return PressureState.PRESSURE if percent < enough else PressureState.HEALTHY
