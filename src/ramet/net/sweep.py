"""Ending what nobody owns: TAPs, admissions and neighbours left on our bridge, and IFBs beside it.

Our own TAPs end with their VMM, but for those that a VMM opens by name: such a one is left behind when its
VMM ended while there was no daemon. What else is found here was made persistent by somebody, or belongs to a
VMM that the daemon has disowned; either way it is reported, for the edge to log.
"""

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

import anyio.to_thread

from ramet.linux import netlink, tc
from ramet.net.bridge import BridgeConfig
from ramet.net.errors import NetworkFailed
from ramet.net.firewall import Element, Firewall
from ramet.net.slots import Endpoint
from ramet.net.tap_shaping import is_ifb_name, remove_ifbs


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    taps: tuple[str, ...]
    neighbours: tuple[IPv4Address, ...]
    admissions: frozenset[Element]
    ifbs: tuple[str, ...] = ()


async def sweep(
    config: BridgeConfig,
    firewall: Firewall,
    held: Callable[[], Iterable[Endpoint]],
    attached: Callable[[], Iterable[Endpoint]],
) -> Swept:
    """Remove TAPs and neighbours not of `held()` from our bridge; admissions, IFBs not of `attached()`.

    Persistent TAPs, which no VMM takes along, go if they are not of `attached()`.

    TAPs go first, so that none is ever there without a filter. Interfaces on other bridges, with another
    prefix or of another kind are left alone.

    Raises:
        NetworkFailed: the kernel refused a removal; what went before it is done.
        FirewallFailed: nft failed; the admissions are as before.
    """
    taps, neighbours, ifbs = await anyio.to_thread.run_sync(_list, config)
    owned = tuple(held())  # After the listing: what was reserved in between is not an orphan.
    names, ips = {e.tap_name for e in owned}, {e.ip for e in owned}
    used, kept = {e.ifb_name for e in attached()}, {e.tap_name for e in attached()}
    taps = [tap for tap in taps if tap.name not in names or (tap.is_persistent and tap.name not in kept)]
    neighbours = [n for n in neighbours if n.ip not in ips]
    ifbs = [name for name in ifbs if name not in used]
    await anyio.to_thread.run_sync(_remove, taps, neighbours)
    await anyio.to_thread.run_sync(remove_ifbs, ifbs)
    admissions = await firewall.sync(attached)
    return Swept(
        tuple(tap.name for tap in taps), tuple(n.ip for n in neighbours if n.ip), admissions, tuple(ifbs)
    )


def _list(config: BridgeConfig) -> tuple[list[netlink.Link], list[netlink.Neighbour], list[str]]:
    try:
        with netlink.RouteSocket() as route:
            links = route.links()
            ifbs = [
                link.name
                for link in links
                if link.kind == tc.IFB_KIND and is_ifb_name(link.name, config.tap_prefix)
            ]
            bridge = next((link.index for link in links if link.name == config.name), None)
            if bridge is None:
                return [], [], ifbs
            taps = [
                link
                for link in links
                if link.kind == "tun" and link.master == bridge and link.name.startswith(config.tap_prefix)
            ]
            return taps, [n for n in route.neighbours(bridge) if n.is_permanent], ifbs
    except OSError as error:
        raise NetworkFailed.because("list interfaces", error) from error


def _remove(taps: list[netlink.Link], neighbours: list[netlink.Neighbour]) -> None:
    requests = [netlink.delete_link(tap.index) for tap in taps]
    requests += [netlink.delete_neighbour(n.interface, n.ip) for n in neighbours if n.ip]
    with netlink.RouteSocket() as route:
        for request in requests:
            try:
                route.apply([request])
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):  # It went by itself.
                    raise NetworkFailed.because(request.what, error) from error
