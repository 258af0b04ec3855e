"""Ending what nobody owns: TAPs, admissions and neighbours left on our bridge.

Our own TAPs end with their VMM, so what is found here was made persistent by somebody, or belongs to a VMM
that the daemon has disowned; either way it is reported, for the edge to log.
"""

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

import anyio.to_thread

from ramet.linux import netlink
from ramet.net.bridge import BridgeConfig
from ramet.net.errors import NetworkFailed
from ramet.net.firewall import Element, Firewall
from ramet.net.slots import Endpoint


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    taps: tuple[str, ...]
    neighbours: tuple[IPv4Address, ...]
    admissions: frozenset[Element]


async def sweep(
    config: BridgeConfig,
    firewall: Firewall,
    held: Callable[[], Iterable[Endpoint]],
    attached: Callable[[], Iterable[Endpoint]],
) -> Swept:
    """Remove from our bridge TAPs and neighbours not of `held()`, and admissions not of `attached()`.

    TAPs go first, so that none is ever there without a filter. Interfaces on other bridges, with another
    prefix or of another kind are left alone.

    Raises:
        NetworkFailed: the kernel refused a removal; what went before it is done.
        FirewallFailed: nft failed; the admissions are as before.
    """
    taps, neighbours = await anyio.to_thread.run_sync(_list, config)
    owned = tuple(held())  # After the listing: what was reserved in between is not an orphan.
    names, ips = {e.tap_name for e in owned}, {e.ip for e in owned}
    taps = [tap for tap in taps if tap.name not in names]
    neighbours = [n for n in neighbours if n.ip not in ips]
    await anyio.to_thread.run_sync(_remove, taps, neighbours)
    admissions = await firewall.sync(attached)
    return Swept(tuple(tap.name for tap in taps), tuple(n.ip for n in neighbours if n.ip), admissions)


def _list(config: BridgeConfig) -> tuple[list[netlink.Link], list[netlink.Neighbour]]:
    try:
        with netlink.RouteSocket() as route:
            links = route.links()
            bridge = next((link.index for link in links if link.name == config.name), None)
            if bridge is None:
                return [], []
            taps = [
                link
                for link in links
                if link.kind == "tun" and link.master == bridge and link.name.startswith(config.tap_prefix)
            ]
            return taps, [n for n in route.neighbours(bridge) if n.is_permanent]
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
