"""What a guest may send, and to whom.

Two tables, named after the bridge. The one of family `bridge` looks at every frame from a TAP before the
bridge learns from it, and passes IPv4 and ARP that carry the MAC and address of the TAP's own slot: a set of
(interface, MAC, address) that says all about who is admitted. It is anti-spoofing and, since a fork wakes up
with its parent's identity, quarantine as well: nothing needs to be opened when the fork has become itself.
The other table, `inet`, lets guests reach the uplink and the named ports of the gateway address, and nothing
else: not each other, not the host, not link-local metadata services.

Changes asked for at the same time go to the kernel in one transaction.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import anyio

from ramet.net.bridge import BridgeConfig
from ramet.net.errors import FirewallFailed
from ramet.net.nft import Nft
from ramet.net.slots import Endpoint

LINK_LOCAL_MACS: Final = "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00"
METADATA_NETWORK: Final = "169.254.0.0/16"
BRIDGE_PRIORITY: Final = -300  # Ahead of every priority that has a name in family bridge.

_TABLE_LINE: Final = re.compile(r"table (\w+ \S+) \{")
_CHAIN_LINE: Final = re.compile(r"\tchain (\S+) \{")
_DROPPING_HOOK: Final = re.compile(r"\t\ttype filter hook forward .*policy drop;")
_ELEMENT: Final = re.compile(r'"?([\w.-]+)"? \. ([0-9a-f:]{17}) \. ([0-9.]+)')


@dataclass(frozen=True, slots=True)
class Element:
    """One admission: frames from `interface` may carry `mac` and `ip`."""

    interface: str
    mac: str
    ip: IPv4Address

    @classmethod
    def of(cls, endpoint: Endpoint) -> "Element":
        """Return the admission of `endpoint`."""
        return cls(endpoint.tap_name, endpoint.mac, endpoint.ip)

    def __str__(self) -> str:
        return f'"{self.interface}" . {self.mac} . {self.ip}'


@dataclass(frozen=True, slots=True)
class FirewallStatistics:
    """What the firewall did since it was opened."""

    admitted_count: int
    change_count: int
    transaction_count: int
    nft_start_count: int


@dataclass(slots=True, eq=False)
class _Change:
    elements: tuple[Element, ...]
    is_admission: bool
    is_done: bool = False
    failure: FirewallFailed | None = None


class Firewall:
    """The two tables of one bridge. They stay when the daemon goes, as the guests do."""

    def __init__(self, config: BridgeConfig) -> None:
        self._config = config
        self._uplink: str | None = None
        self._table = f"ramet_{config.name}"
        self._nft = Nft()
        self._lock = anyio.Lock()
        self._pending: list[_Change] = []
        self._admitted: set[Element] = set()
        self._change_count = self._transaction_count = 0

    @property
    def nft_pid(self) -> int | None:
        """The nft process in use, None before the first transaction and after a failed one."""
        return self._nft.pid

    async def open(self, uplink: str | None) -> None:
        """Write the rules, in one transaction that keeps whatever is admitted. `uplink` None: no way out.

        Raises:
            FirewallFailed: nft is not there, or the kernel lacks what the rules need.
        """
        async with self._lock:
            self._uplink = uplink
            self._admitted = await self._read_elements()
            await self._rebuild()

    async def close(self) -> None:
        """End nft. Rules and admissions stay."""
        async with self._lock:
            await self._nft.close()

    async def admit(self, endpoints: Iterable[Endpoint]) -> None:
        """Let the TAPs of `endpoints` pass their own frames. Idempotent; before the TAP exists.

        Raises:
            FirewallFailed: nothing was admitted.
        """
        await self._change(endpoints, is_admission=True)

    async def revoke(self, endpoints: Iterable[Endpoint]) -> None:
        """Let the TAPs of `endpoints` pass nothing. Idempotent; after the TAP is gone.

        Raises:
            FirewallFailed: they may still be admitted.
        """
        await self._change(endpoints, is_admission=False)

    async def sync(self, admitted: Callable[[], Iterable[Endpoint]]) -> frozenset[Element]:
        """Admit exactly `admitted()`, called when no change is under way; return what was revoked by it.

        Raises:
            FirewallFailed: it is as before.
        """
        async with self._lock:
            wanted = {Element.of(endpoint) for endpoint in admitted()}
            with anyio.CancelScope(shield=True):
                present = await self._read_elements()
                before, self._admitted = self._admitted, wanted
                try:
                    commands = [f"flush set bridge {self._table} guests", *self._adding(wanted)]
                    await self._run_or_rebuild(commands)
                except FirewallFailed:
                    self._admitted = before
                    raise
        return frozenset(present - wanted)

    async def elements(self) -> frozenset[Element]:
        """Return what the kernel admits now.

        Raises:
            FirewallFailed: nft failed.
        """
        async with self._lock:
            return frozenset(await self._read_elements())

    async def foreign_drops(self) -> tuple[str, ...]:
        """Return the chains of others, as "ip filter FORWARD", that drop what they do not know.

        A packet must pass every chain of a hook: our accepting a guest's does not override them.

        Raises:
            FirewallFailed: nft failed.
        """
        async with self._lock:
            printed = await self._run(["list chains"])
        found, table, chain = [], "", ""
        for line in printed.splitlines():
            if match := _TABLE_LINE.match(line):
                table = match[1]
            elif match := _CHAIN_LINE.match(line):
                chain = match[1]
            elif _DROPPING_HOOK.match(line) and table.partition(" ")[0] in ("ip", "inet"):
                found.append(f"{table} {chain}")
        return tuple(found)

    async def destroy(self) -> None:
        """Remove both tables: for a host that shall have no more guests.

        Raises:
            FirewallFailed: nft failed.
        """
        async with self._lock:
            await self._run(self._dropping())
            self._admitted.clear()

    def statistics(self) -> FirewallStatistics:
        """Return the counts so far."""
        return FirewallStatistics(
            len(self._admitted), self._change_count, self._transaction_count, self._nft.start_count
        )

    async def _change(self, endpoints: Iterable[Endpoint], *, is_admission: bool) -> None:
        """Queue a change; whoever gets the lock first carries out all that is queued by then."""
        change = _Change(tuple(Element.of(endpoint) for endpoint in endpoints), is_admission)
        if not change.elements:
            return
        self._pending.append(change)
        try:
            async with self._lock:
                if not change.is_done:
                    batch, self._pending = self._pending, []
                    with anyio.CancelScope(shield=True):
                        await self._carry_out(batch)
        finally:
            if change in self._pending:  # Cancelled while it waited for its turn.
                self._pending.remove(change)
        if change.failure is not None:
            raise change.failure

    async def _carry_out(self, batch: Collection[_Change]) -> None:
        verdicts = {element: change.is_admission for change in batch for element in change.elements}
        gone = {element for element, is_admitted in verdicts.items() if not is_admitted}
        # Deleting what is not there is an error, adding what is there is none.
        commands = self._adding(verdicts)
        if gone:
            commands.append(f"delete element bridge {self._table} guests {_braced(gone)}")
        before = self._admitted
        self._admitted = (before | verdicts.keys()) - gone
        failure: FirewallFailed | None = None
        try:
            await self._run_or_rebuild(commands)
            self._change_count += len(batch)
        except FirewallFailed as error:
            self._admitted = before
            failure = error
        for change in batch:
            change.is_done, change.failure = True, failure

    async def _run_or_rebuild(self, commands: list[str]) -> None:
        """Run `commands`, which make the kernel agree with `_admitted`; if that fails, write everything anew.

        So an nft that died, and tables that somebody flushed, are mended by the next change.
        """
        try:
            await self._run(commands)
        except FirewallFailed:
            await self._rebuild()

    async def _rebuild(self) -> None:
        await self._run([*self._dropping(), *self._rules(), *self._adding(self._admitted)])

    async def _run(self, commands: list[str]) -> str:
        self._transaction_count += 1
        return await self._nft.run("; ".join(commands))

    async def _read_elements(self) -> set[Element]:
        """Return the elements in the kernel, making the set if there is none."""
        printed = await self._run([*self._set_commands(), f"list set bridge {self._table} guests"])
        return {Element(name, mac, IPv4Address(ip)) for name, mac, ip in _ELEMENT.findall(printed)}

    def _adding(self, elements: Collection[Element]) -> list[str]:
        if not elements:
            return []
        return [f"add element bridge {self._table} guests {_braced(elements)}"]

    def _dropping(self) -> list[str]:
        return [
            f"{verb} table {family} {self._table}"
            for family in ("bridge", "inet")
            for verb in ("add", "delete")  # Deleting what is not there is an error.
        ]

    def _set_commands(self) -> list[str]:
        return [
            f"add table bridge {self._table}",
            f"add set bridge {self._table} guests {{ type ifname . ether_addr . ipv4_addr; }}",
        ]

    def _rules(self) -> list[str]:
        commands = self._set_commands()
        family = "bridge"

        def chain(name: str, hook: str, *rules: str) -> None:
            spec = f" {{ type {hook}; policy accept; }}" if hook else ""
            commands.append(f"add chain {family} {self._table} {name}{spec}")
            commands.extend(f"add rule {family} {self._table} {name} {rule}" for rule in rules)

        taps = f'iifname "{self._config.tap_prefix}*"'
        chain(
            "from_guest",
            "",
            # Not with our port options; else some go around prerouting, to the host as if from the TAP.
            f"{LINK_LOCAL_MACS} counter drop",
            "ether type ip iifname . ether saddr . ip saddr @guests accept",
            "arp htype 1 arp ptype ip arp hlen 6 arp plen 4"
            " iifname . ether saddr . arp saddr ip @guests"
            " iifname . arp saddr ether . arp saddr ip @guests accept",
            "counter drop",
        )
        for hook in ("prerouting", "input"):
            chain(hook, f"filter hook {hook} priority {BRIDGE_PRIORITY}", f"{taps} jump from_guest")
        family = "inet"
        commands.append(f"add table inet {self._table}")
        chain("input", "filter hook input priority filter", *self._input_rules(taps))
        chain("forward", "filter hook forward priority filter", *self._forward_rules())
        chain(
            "postrouting",
            "nat hook postrouting priority srcnat",
            f'ip saddr {self._config.subnet} oifname != "{self._config.name}" masquerade',
        )
        return commands

    def _input_rules(self, taps: str) -> list[str]:
        bridge, gateway = f'iifname "{self._config.name}"', self._config.gateway.ip
        rules = [
            f"{bridge} ct state established,related accept",
            f"{bridge} ip daddr {gateway} icmp type echo-request accept",
        ]
        if self._config.allow_host_ports:
            ports = ", ".join(f"{protocol} . {port}" for protocol, port in self._config.allow_host_ports)
            rules.append(f"{bridge} ip daddr {gateway} meta l4proto . th dport {{ {ports} }} accept")
        return [*rules, f"{bridge} counter drop", f"{taps} counter drop"]

    def _forward_rules(self) -> list[str]:
        inward, outward = f'oifname "{self._config.name}"', f'iifname "{self._config.name}"'
        rules = [
            f"{outward} {inward} counter drop",
            f"{inward} ct state established,related accept",
            f"{inward} counter drop",
            f"{outward} ip daddr {METADATA_NETWORK} counter drop",
        ]
        if self._uplink is not None:
            rules.append(f'{outward} ip saddr {self._config.subnet} oifname "{self._uplink}" accept')
        return [*rules, f"{outward} counter drop"]


def _braced(elements: Iterable[Element]) -> str:
    return "{ " + ", ".join(map(str, elements)) + " }"
