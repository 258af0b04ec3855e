"""How much of the host is held, by whom, and what is still free.

Admitting is arithmetic: no I/O, no lock, a few microseconds, however many owners there are. What runs already
is noted and never refused; so more may be held than there is, and then nothing new is admitted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ramet.admission.demand import NOTHING, Demand, Resource
from ramet.core.errors import Exhausted

Source = Literal["detected", "configured", "unknown"]

_INDEX: Final = {resource: index for index, resource in enumerate(Resource)}
_UNIT: Final = {
    Resource.CPU: ("vCPUs", 1),
    Resource.MEMORY: ("MiB", 1 << 20),
    Resource.DISK: ("MiB", 1 << 20),
    Resource.NETWORK: ("Mbit/s", 125_000),
    Resource.DISK_IO: ("MB/s", 1_000_000),
}
_REMEDY: Final = {
    Resource.CPU: "stop or delete an instance, or raise oversubscription.cpu",
    Resource.MEMORY: "stop or delete an instance, or raise oversubscription.memory",
    Resource.DISK: "delete an instance, or raise oversubscription.disk",
    Resource.NETWORK: "stop an instance, ask for a lower rate, or raise oversubscription.network",
    Resource.DISK_IO: "stop an instance, ask for a lower disk_io_bps, or raise oversubscription.disk_io",
}


class InsufficientResources(Exhausted):
    """What was asked for is more than what is free; nothing was begun."""

    code = "insufficient_resources"


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of one resource may be held: `capacity` times `ratio`.

    In vCPUs, bytes or bytes per second. `capacity` None: nobody knows it, and there is no limit.
    """

    resource: Resource
    capacity: int | None
    ratio: float = 1.0
    source: Source = "detected"

    @property
    def effective(self) -> int | None:
        return None if self.capacity is None else int(self.capacity * self.ratio)


UNLIMITED: Final = tuple(Limit(resource, None, source="unknown") for resource in Resource)


class Ledger:
    """Who holds what. Synchronous throughout, hence atomic on the event loop.

    Args:
        limits: of any resources; the others have none.
    """

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self._limits = {limit.resource: limit for limit in UNLIMITED}
        self._effective: dict[Resource, int | None] = dict.fromkeys(Resource)
        self._held: dict[str, Demand] = {}
        self._total = NOTHING
        for limit in limits:
            self.limit(limit)

    @property
    def total(self) -> Demand:
        """What all owners hold together."""
        return self._total

    @property
    def owner_count(self) -> int:
        """How many hold something."""
        return len(self._held)

    def held(self, owner: str) -> Demand:
        """Return what `owner` holds."""
        return self._held.get(owner, NOTHING)

    def limit(self, limit: Limit) -> None:
        """Put `limit` in place of the one of its resource; what is held already stays."""
        self._limits[limit.resource] = limit
        self._effective[limit.resource] = limit.effective

    def total_of(self, resource: Resource) -> int:
        """Return how much of one resource all owners hold together."""
        return self._total[_INDEX[resource]]

    def limit_of(self, resource: Resource) -> Limit:
        """Return the limit of a resource."""
        return self._limits[resource]

    def admit(self, owner: str, demand: Demand, what: str) -> None:
        """Let `owner` hold `demand` in place of what it held, if what it asks for beyond that is free.

        Args:
            what: whom it is for, as a person calls it: "instance web".

        Raises:
            InsufficientResources: it is not; `owner` holds what it held.
        """
        held = self.held(owner)
        for resource, total, mine, asked in zip(Resource, self._total, held, demand, strict=True):
            limit = self._effective[resource]
            if asked > mine and limit is not None and total - mine + asked > limit:
                raise _refusal(resource, what, asked - mine, max(0, limit - total), limit)
        self.note(owner, demand)

    def note(self, owner: str, demand: Demand) -> None:
        """Let `owner` hold `demand` in place of what it held, free or not."""
        held = self.held(owner)
        self._total = Demand(
            *(total - mine + now for total, mine, now in zip(self._total, held, demand, strict=True))
        )
        if demand == NOTHING:
            self._held.pop(owner, None)
        else:
            self._held[owner] = demand

    def release(self, owner: str) -> None:
        """Give back all that `owner` holds. Harmless if it holds nothing."""
        self.note(owner, NOTHING)


def _refusal(resource: Resource, what: str, asked: int, free: int, limit: int) -> InsufficientResources:
    unit, size = _UNIT[resource]
    # What is asked is rounded up and what there is rounded down: the sentence must not say that it fits.
    numbers = f"{-(-asked // size)} {unit} asked, {free // size} of {limit // size} {unit} free"
    return InsufficientResources(
        f"there is not enough {resource} for {what}: {numbers}",
        remedy=_REMEDY[resource],
        resource=resource.value,
        asked=asked,
        free=free,
        limit=limit,
    )
