"""Memory that guests give back, as the API sees it in tests."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from ramet.core.guest_memory import GuestMemory, HostMemory, ReclaimHold
from ramet.core.ids import InstanceId
from ramet.core.spec import State
from ramet.instance.fleet_types import InstanceView
from ramet.policies.reclaim import ReclaimConfig
from ramet.policies.reclaiming import ReclaimKeeper


class Listed(Protocol):
    """What is asked of the fleet."""

    @property
    def balloons(self) -> dict[InstanceId, int]: ...

    def list(self) -> Sequence[InstanceView]: ...


class MemoryHold:
    """What was asked for, written down nowhere."""

    def __init__(self) -> None:
        self.hold: ReclaimHold | None = None

    def load(self) -> ReclaimHold | None:
        return self.hold

    def save(self, hold: ReclaimHold) -> None:
        self.hold = hold


class _Guests:
    """Guests that give at once whatever they are asked for."""

    def __init__(self, fleet: Listed) -> None:
        self._fleet = fleet

    async def look(self, instances: Iterable[InstanceId] | None = None) -> Sequence[GuestMemory]:
        return [
            GuestMemory(
                view.record.id,
                view.record.name,
                view.record.spec.hypervisor,
                view.record.spec.memory_bytes,
                self._fleet.balloons.get(view.record.id, 0),
            )
            for view in self._fleet.list()
            if view.record.state is State.RUNNING
        ]

    async def ask(self, instance: InstanceId, balloon_bytes: int) -> None:
        self._fleet.balloons[instance] = balloon_bytes


class StandInReclaims(ReclaimKeeper):
    """The real keeper of what guests have given back, which nobody runs: they do not have it again."""

    def __init__(self, fleet: Listed) -> None:
        host = HostMemory(8 << 30, 6 << 30)
        super().__init__(_Guests(fleet), MemoryHold(), lambda: host, ReclaimConfig())
