"""The bridge all guests are ports of: its settings, its making, and the clashes that forbid it.

The bridge outlives the daemon, as the guests on it do; an existing one is adopted if it is ours by name and
address, and refused otherwise. Its gateway address is the only address of the host a guest may speak to, and
to the ports a setting names only (see `ramet.net.firewall`).
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final, Literal

import anyio.to_thread

from ramet.core.errors import Invalid
from ramet.linux import netlink
from ramet.net.errors import BridgeClash, NetworkFailed, SubnetClash
from ramet.net.rates import UNLIMITED, RateLimits
from ramet.net.slots import SLOT_FIRST, TAP_PREFIX_DEFAULT, mac_of

NAME_CHARS_MAX: Final = 15  # IFNAMSIZ - 1
TAP_PREFIX_CHARS_MAX: Final = 10  # Five digits follow.
MTU_BYTES_DEFAULT: Final = 1500
PREFIX_LENGTH_MAX: Final = 29  # Room for the gateway and a few guests.
SPLIT_DEFAULT_PREFIX_LENGTH: Final = 1  # 0/1 and 128/1 together are how a VPN spells "default".

SUBNET_DEFAULT: Final = IPv4Network("10.100.0.0/16")
DNS_DEFAULT: Final = (IPv4Address("1.1.1.1"),)

_IPV4: Final = Path("/proc/sys/net/ipv4")
_IPV6: Final = Path("/proc/sys/net/ipv6")


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """Settings of one bridge.

    `uplink` None takes the interface of the default route; where there is none, guests reach nothing
    beyond the host. `allow_host_ports` are ports of the gateway address that guests may use, such as
    ("udp", 53). `tap_prefix` begins the name of every TAP; two daemons in one network namespace need two.
    `mtu_bytes` None takes the uplink's. `default_limits` are those of guests for which none are asked.

    Raises:
        Invalid: a setting makes no sense.
    """

    name: str = "rmtbr0"
    subnet: IPv4Network = SUBNET_DEFAULT
    uplink: str | None = None
    dns: tuple[IPv4Address, ...] = DNS_DEFAULT
    allow_host_ports: tuple[tuple[Literal["tcp", "udp"], int], ...] = ()
    tap_prefix: str = TAP_PREFIX_DEFAULT
    mtu_bytes: int | None = None
    default_limits: RateLimits = UNLIMITED

    def __post_init__(self) -> None:
        if not (_is_plain(self.name) and len(self.name) <= NAME_CHARS_MAX):
            raise Invalid(f"{self.name!r} cannot name a bridge", setting="network.bridge_name")
        if not (_is_plain(self.tap_prefix) and len(self.tap_prefix) <= TAP_PREFIX_CHARS_MAX):
            raise Invalid(f"{self.tap_prefix!r} cannot begin a TAP's name", setting="network.tap_prefix")
        if self.uplink is not None and not _is_interface_name(self.uplink):
            raise Invalid(f"{self.uplink!r} is no interface name", setting="network.uplink_interface")
        if self.subnet.prefixlen > PREFIX_LENGTH_MAX:
            raise Invalid(f"{self.subnet} has no room for guests", setting="network.subnet_cidr")
        for protocol, port in self.allow_host_ports:
            if protocol not in ("tcp", "udp") or not 0 < port < 1 << 16:
                raise Invalid(f"{protocol}/{port} is no port", setting="network.allow_host_ports")

    @property
    def gateway(self) -> IPv4Interface:
        """The bridge's own address, the first of the subnet."""
        return IPv4Interface((self.subnet[SLOT_FIRST - 1], self.subnet.prefixlen))


@dataclass(frozen=True, slots=True)
class BridgeFacts:
    """The bridge as it is in the kernel. `uplink` None: there is no way out."""

    index: int
    uplink: str | None
    mtu_bytes: int


class Bridge:
    """The bridge of `config` in the daemon's network namespace."""

    def __init__(self, config: BridgeConfig) -> None:
        self._config = config

    async def ensure(self) -> BridgeFacts:
        """Make the bridge what the settings say, or find that it is; idempotent, guests do not notice.

        Raises:
            SubnetClash: the host uses addresses of the subnet elsewhere. Nothing was changed.
            BridgeClash: the name belongs to another kind of interface, or to a bridge with other addresses.
            Invalid: the uplink named by the settings does not exist.
            NetworkFailed: the kernel refused.
        """
        return await anyio.to_thread.run_sync(self._ensure)

    def _ensure(self) -> BridgeFacts:
        config = self._config
        try:
            with netlink.RouteSocket() as route:
                links = {link.index: link for link in route.links()}
                addresses = route.addresses()
                routes = route.routes()
                found = next((link for link in links.values() if link.name == config.name), None)
                names = {index: link.name for index, link in links.items()}
                refuse_clash(config, names, addresses, routes)
                if found is not None:
                    self._refuse_foreign(found, addresses)
                uplink = self._find_uplink(links, routes)
                mtu_bytes = config.mtu_bytes or (uplink.mtu_bytes if uplink else MTU_BYTES_DEFAULT)
                mac = mac_of(config.gateway.ip)
                has_mac = found is None or found.mac == mac
                index = found.index if found else self._create(route, mtu_bytes)
                route.apply(
                    [
                        netlink.set_bridge(index, mac=None if has_mac else mac, mtu_bytes=mtu_bytes),
                        netlink.add_address(index, config.gateway),
                    ]
                )
            self._set_switches()
        except OSError as error:
            raise NetworkFailed.because(f"make bridge {config.name}", error) from error
        return BridgeFacts(index, uplink.name if uplink else None, mtu_bytes)

    def _create(self, route: netlink.RouteSocket, mtu_bytes: int) -> int:
        name = self._config.name
        route.apply([netlink.create_bridge(name, mac=mac_of(self._config.gateway.ip), mtu_bytes=mtu_bytes)])
        return next(link.index for link in route.links() if link.name == name)

    def _refuse_foreign(self, found: netlink.Link, addresses: list[tuple[int, IPv4Interface]]) -> None:
        others = [str(a) for index, a in addresses if index == found.index and a != self._config.gateway]
        if found.kind == "bridge" and not others:
            return
        kind = f"a bridge with address {others[0]}" if found.kind == "bridge" else "no bridge"
        raise BridgeClash(
            f"interface {found.name} exists and is {kind}",
            remedy="set network.bridge_name to another name, or delete the interface",
            interface=found.name,
        )

    def _find_uplink(
        self, links: dict[int, netlink.Link], routes: list[netlink.Route]
    ) -> netlink.Link | None:
        wanted = self._config.uplink
        if wanted is not None:
            for link in links.values():
                if link.name == wanted:
                    return link
            raise Invalid(
                f"there is no interface {wanted}", remedy="set network.uplink_interface to one of `ip link`'s"
            )
        defaults = [r for r in routes if r.destination.prefixlen == 0 and r.table == netlink.RT_TABLE_MAIN]
        for route in sorted(defaults, key=lambda r: r.metric):
            if route.interface in links:
                return links[route.interface]
        return None

    def _set_switches(self) -> None:
        own = _IPV4 / "conf" / self._config.name
        _write_switch(_IPV4 / "ip_forward", "1")
        _write_switch(own / "arp_ignore", "1")  # Else the host answers for its other addresses, too.
        _write_switch(own / "send_redirects", "0")  # Nobody shall be told of a shorter way to a guest.
        _write_switch(own / "rp_filter", "1")
        own_ipv6 = _IPV6 / "conf" / self._config.name
        if own_ipv6.exists():
            _write_switch(own_ipv6 / "disable_ipv6", "1")


def refuse_clash(
    config: BridgeConfig,
    names: dict[int, str],
    addresses: list[tuple[int, IPv4Interface]],
    routes: list[netlink.Route],
) -> None:
    """Refuse a subnet of which the host uses addresses elsewhere.

    Args:
        names: of the interfaces, by index.
        addresses: (index of the interface, address) of all interfaces.
        routes: all IPv4 routes.

    Raises:
        SubnetClash: the first address or route that overlaps.
    """
    taken = [(index, address.network) for index, address in addresses]
    taken += [
        (route.interface, route.destination)
        for route in routes
        if route.destination.prefixlen > SPLIT_DEFAULT_PREFIX_LENGTH
    ]
    for index, network in taken:
        name = names.get(index, "no interface")
        if name != config.name and network.overlaps(config.subnet):
            raise SubnetClash(
                f"the guests' subnet {config.subnet} overlaps {network} of {name}",
                remedy="set network.subnet_cidr to a range this host does not use",
                interface=name,
                network=str(network),
                setting="network.subnet_cidr",
            )


def _write_switch(path: Path, value: str) -> None:
    """Write a sysctl unless it has the value: /proc/sys may be read-only where an operator set it."""
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        name = ".".join(path.parts[3:])
        raise NetworkFailed(
            f"the kernel refused to set {name} to {value}: {error.strerror}",
            remedy=f"run: sysctl -w {name}={value}",
            errno=error.errno,
        ) from error


def has_ipv6() -> bool:
    """Tell whether this kernel has IPv6 at all."""
    return _IPV6.exists()


def _is_plain(text: str) -> bool:
    return text.isascii() and text.replace("-", "").isalnum() and text[0].isalpha()


def _is_interface_name(text: str) -> bool:
    forbidden = set('/"\\') | set(" \t\n")
    return 0 < len(text) <= NAME_CHARS_MAX and not forbidden & set(text)
