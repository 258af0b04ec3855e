"""What of the host's network stands in the way of guests: others' rules, addresses, switches."""

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Final

from ramet.doctor.findings import Finding, fail, info, ok, warn
from ramet.doctor.host import HostView
from ramet.doctor.ruleset import Outcome, Packet, Ruleset
from ramet.doctor.subject import Subject
from ramet.linux.netlink import RT_TABLE_MAIN, RouteSocket
from ramet.net.bridge import BridgeConfig, refuse_clash
from ramet.net.errors import SubnetClash

_ABROAD: Final = IPv4Address("198.51.100.1")  # TEST-NET-2: any address beyond the uplink.


def check_forwarding(_: Subject, host: HostView) -> Iterator[Finding]:
    """Look at the switches the daemon sets, and at one it does not."""
    forward = host.read_number("/proc/sys/net/ipv4/ip_forward")
    if forward == 1:
        yield ok("ip_forward", "ip_forward", "the host forwards packets")
    elif forward == 0:
        yield info(
            "ip_forward",
            "ip_forward_off",
            "the host does not forward packets yet; the daemon switches it on",
            "sysctl -w net.ipv4.ip_forward=1",
        )
    if host.read_number("/proc/sys/net/ipv4/conf/all/rp_filter") == 1:
        yield info(
            "rp_filter", "rp_filter_strict", "packets from where they would not be sent to are dropped"
        )


def check_subnet(subject: Subject, _: HostView) -> Iterator[Finding]:
    """Look for others who use addresses of the guests' subnet, and for the way out."""
    config = subject.bridge
    with RouteSocket() as route:
        names = {link.index: link.name for link in route.links()}
        addresses, routes = route.addresses(), route.routes()
    try:
        refuse_clash(config, names, addresses, routes)
    except SubnetClash as error:
        yield fail("subnet", error.code, error.message, error.remedy)
    else:
        yield ok("subnet", "subnet", f"nobody else uses {config.subnet}")
    if config.uplink is not None and config.uplink not in names.values():
        yield fail(
            "uplink",
            "uplink_missing",
            f"there is no interface {config.uplink}",
            "set network.uplink_interface to one of `ip link`",
        )
    elif config.uplink is None and find_uplink() is None:
        yield info("uplink", "no_uplink", "the host has no default route: guests reach nothing beyond it")
    else:
        yield ok("uplink", "uplink", f"guests go out by {config.uplink or find_uplink()}")


def find_uplink() -> str | None:
    """Return the interface of the default route, None without one."""
    with RouteSocket() as route:
        names = {link.index: link.name for link in route.links()}
        found = [r for r in route.routes() if r.destination.prefixlen == 0 and r.table == RT_TABLE_MAIN]
    return next(
        (names[r.interface] for r in sorted(found, key=lambda r: r.metric) if r.interface in names), None
    )


def check_dns(subject: Subject, _: HostView) -> Iterator[Finding]:
    """Tell which name servers guests are given."""
    servers = subject.bridge.dns
    if not servers:
        yield warn("dns", "dns_none", "guests are given no name server", "set network.dns_servers")
    elif any(server.is_loopback for server in servers):
        yield warn(
            "dns",
            "dns_loopback",
            "guests are given a loopback address as name server, which is their own",
            "set network.dns_servers to an address guests can reach",
        )
    else:
        yield ok("dns", "dns", f"guests ask {', '.join(map(str, servers))} for names")


def check_firewalls(
    subject: Subject, host: HostView, uplink: Callable[[], str | None] = find_uplink
) -> Iterator[Finding]:
    """Look for others' rules that would drop our guests' packets."""
    if not host.is_root:
        yield info(
            "firewall", "firewall_not_seen", "only root may read the host's rules", "sudo ramet doctor"
        )
        return
    out = subject.bridge.uplink or uplink()
    if out is None:
        return  # Said with the subnet: there is nowhere to forward to.
    listed = host.run("nft", "-j", "list", "ruleset")
    if listed is None or listed.code != 0:
        if host.find("nft") is not None:
            yield warn("firewall", "firewall_unread", "nft cannot list the host's rules", "nft list ruleset")
    else:
        yield from judge_ruleset(subject.bridge, out, listed.text)
    if "filter" in (host.read("/proc/net/ip_tables_names") or "").split():
        legacy = host.run("iptables-legacy", "-S", "FORWARD")
        yield from judge_legacy(subject.bridge, legacy.text if legacy else "")


def judge_ruleset(config: BridgeConfig, uplink: str, text: str) -> Iterator[Finding]:
    """Walk a guest's packet and the answer to it through the rules that `nft -j list ruleset` printed."""
    guest = config.subnet[2]
    going = Packet(config.name, uplink, guest, _ABROAD, "new")
    coming = Packet(uplink, config.name, _ABROAD, guest, "established")
    try:
        rules = Ruleset(text)
        verdicts = [*rules.verdicts(going), *rules.verdicts(coming)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield warn(
            "firewall",
            "firewall_unread",
            f"the host's rules were not understood: {error!r}",
            "nft list ruleset",
        )
        return
    dropping = dict.fromkeys(chain for chain, outcome in verdicts if outcome is Outcome.DROPPED)
    unsure = dict.fromkeys(
        chain for chain, outcome in verdicts if outcome is Outcome.UNSURE and chain not in dropping
    )
    for chain in dropping:
        remedy = _remedy(config.name, chain, text)
        yield fail("firewall", "firewall_drops", f"the chain {chain} drops guests' packets", remedy)
    for chain in unsure:
        remedy = _remedy(config.name, chain, text)
        yield warn("firewall", "firewall_may_drop", f"the chain {chain} may drop guests' packets", remedy)
    if not dropping and not unsure:
        yield ok("firewall", "firewall", f"no rules of others drop what {config.name} forwards")


def judge_legacy(config: BridgeConfig, printed: str) -> Iterator[Finding]:
    """Look at `iptables-legacy -S FORWARD`, whose rules nft does not show; empty if it is not installed."""
    accepts = {f"-A FORWARD -i {config.name} -j ACCEPT", f"-A FORWARD -o {config.name} -j ACCEPT"}
    if "-P FORWARD ACCEPT" in printed and "-j DROP" not in printed and "-j REJECT" not in printed:
        return
    if accepts <= set(printed.splitlines()):
        return
    yield warn(
        "firewall",
        "iptables_legacy",
        "there are rules of the old iptables, which may drop guests' packets",
        "; ".join(f"iptables-legacy -I FORWARD -{side} {config.name} -j ACCEPT" for side in "io"),
    )


def _remedy(bridge: str, chain: str, text: str) -> str:
    """Return what lets the bridge's packets through `chain`, in the words of whoever made it."""
    family, table, name = chain.split(" ", 2)
    if table == "firewalld":
        return f"firewall-cmd --permanent --zone=trusted --add-interface={bridge} && firewall-cmd --reload"
    if '"ufw-user-forward"' in text and (table, name) == ("filter", "FORWARD"):
        return f"ufw route allow in on {bridge} && ufw route allow out on {bridge}"
    if (family, table, name) == ("ip", "filter", "FORWARD"):
        chain_name = "DOCKER-USER" if '"DOCKER-USER"' in text else "FORWARD"
        return (
            f"iptables -I {chain_name} -i {bridge} -j ACCEPT; iptables -I {chain_name} -o {bridge} -j ACCEPT"
        )
    rules = " ".join((family, table, name))
    return f"nft insert rule {rules} iifname {bridge} accept; nft insert rule {rules} oifname {bridge} accept"
