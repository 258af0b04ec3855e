"""Guest endpoints: which one an instance gets, and for how long.

A *slot* is a small integer from which everything a guest needs on the bridge is computed: IPv4 address,
MAC, and the names of its TAP and of the IFB that limits its upload. Two instances can clash on any of these
only by holding the same slot, so uniqueness is enforced once, here.

Reserving is bookkeeping: no I/O, no lock, a few microseconds. Creating the TAP is slow and happens after it,
so concurrent forks never queue behind each other's kernel calls.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from ramet.core.errors import Conflict, Exhausted, NotFound
from ramet.core.ids import InstanceId

SLOT_FIRST: Final = 2  # Address 0 names the subnet and 1 is the bridge.
BRIDGE_ENDPOINTS_MAX: Final = 1000  # The kernel allows 1,023 ports to a bridge; the rest is for others.
TAP_PREFIX_DEFAULT: Final = "rmt"


class SlotHeld(Conflict):
    """The slot asked for belongs to another instance, or is outside the subnet."""

    code = "slot_held"
    remedy_default = "look at the log: two daemons may share a bridge"


class SlotsExhausted(Exhausted):
    """Every slot of the bridge is held."""

    code = "insufficient_resources"


class NoEndpoint(NotFound):
    """The instance holds no slot."""

    code = "no_endpoint"
    remedy_default = "make it with a network: network.enabled"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One guest's place on the bridge. Every other property follows from `slot`."""

    slot: int
    ip: IPv4Address
    tap_prefix: str = TAP_PREFIX_DEFAULT

    @property
    def mac(self) -> str:
        """The guest's MAC, "02:fc:" and the address in hex; 02 is locally administered, unicast."""
        return mac_of(self.ip)

    @property
    def tap_name(self) -> str:
        """The guest's interface on the host: the prefix and five digits, "rmt00002"."""
        return f"{self.tap_prefix}{self.slot:05d}"

    @property
    def ifb_name(self) -> str:
        """The device that limits what the guest sends: "rmtu0002"; no longer than that of the TAP."""
        return f"{self.tap_prefix}u{self.slot:04d}"


def mac_of(ip: IPv4Address) -> str:
    """Return the one MAC that `ip` ever has with us, so that no ARP entry can be stale."""
    return "02:fc:" + ip.packed.hex(":")


class SlotPool:
    """The slots of one bridge. Synchronous throughout, hence atomic on the event loop."""

    def __init__(self, subnet: IPv4Network, tap_prefix: str = TAP_PREFIX_DEFAULT) -> None:
        self._subnet = subnet
        self._tap_prefix = tap_prefix
        broadcast = subnet.num_addresses - 1
        last = min(broadcast, SLOT_FIRST + BRIDGE_ENDPOINTS_MAX)
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(SLOT_FIRST, last))
        self._held: dict[InstanceId, Endpoint] = {}

    def __contains__(self, instance: InstanceId) -> bool:
        return instance in self._held

    @property
    def free_count(self) -> int:
        """How many slots nobody holds."""
        return len(self._free)

    @property
    def held_count(self) -> int:
        """How many slots are held."""
        return len(self._held)

    def endpoints(self) -> Iterable[Endpoint]:
        """Return a view of every endpoint held now."""
        return self._held.values()

    def endpoint(self, instance: InstanceId) -> Endpoint:
        """Return what `instance` holds.

        Raises:
            NoEndpoint: it holds nothing.
        """
        try:
            return self._held[instance]
        except KeyError:
            raise NoEndpoint(f"instance {instance} has no place on the network") from None

    def reserve_nowait(self, instance: InstanceId) -> Endpoint:
        """Return the endpoint `instance` holds, or hold the slot that has been free longest.

        Longest-free first, so that stale conntrack entries age out before an address meets its next guest.

        Raises:
            SlotsExhausted: `instance` holds none and none is free.
        """
        if instance in self._held:
            return self._held[instance]
        if not self._free:
            raise SlotsExhausted(
                f"all {len(self._held)} network endpoints of {self._subnet} are held",
                remedy="delete an instance and try again",
                held_count=len(self._held),
            )
        return self._hold(instance, next(iter(self._free)))

    def adopt(self, instance: InstanceId, slot: int) -> Endpoint:
        """Hold `slot` for `instance`, as its stored record says. For startup.

        Raises:
            SlotHeld: `instance` holds a slot already, or `slot` is not free in this subnet.
        """
        if instance in self._held or slot not in self._free:
            raise SlotHeld(f"instance {instance} cannot hold slot {slot} of {self._subnet}", slot=slot)
        return self._hold(instance, slot)

    def release(self, instance: InstanceId) -> None:
        """Free the slot of `instance`, which must hold one and have no TAP left."""
        self._free[self._held.pop(instance).slot] = None

    def _hold(self, instance: InstanceId, slot: int) -> Endpoint:
        del self._free[slot]
        self._held[instance] = Endpoint(slot, self._subnet[slot], self._tap_prefix)
        return self._held[instance]
