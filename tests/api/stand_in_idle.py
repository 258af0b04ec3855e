"""Idle instances, as the API sees them in tests."""

from ipaddress import IPv4Address

from ramet.policies.idle import IdleKeeper, IdleStatus, Inbound, Sleepers


class StandInIdle:
    """The real keeper of idle instances, over some to which nobody is connected. None is put to sleep."""

    error = ""

    def __init__(self, fleet: Sleepers) -> None:
        self._fleet = fleet
        self._keeper = IdleKeeper(fleet, self, lambda record: IPv4Address("10.100.0.7"), lambda instance: 0)

    def inbound(self, address: IPv4Address) -> tuple[Inbound, ...]:
        return ()

    def outbound(self, address: IPv4Address) -> tuple[object, ...]:
        return ()

    def status(self, ref: str) -> IdleStatus:
        self._keeper.see(self._fleet.get(ref).record)
        return self._keeper.status(ref)

    def hold(self, ref: str) -> IdleStatus:
        self._keeper.see(self._fleet.get(ref).record)
        return self._keeper.hold(ref)
