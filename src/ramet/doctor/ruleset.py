"""Whether a packet would pass the forward hook, told from `nft -j list ruleset`.

A packet must pass every base chain of the hook: an accept in our own table does not override another's
drop. So each chain is walked as the kernel walks it, with three truths: a match that is not understood
(an iptables extension, a set) may hold or not, and what hangs on it makes the outcome unsure.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any, Final

JUMP_DEPTH_MAX: Final = 16  # The kernel's own (NFT_JUMP_STACK_SIZE).
_EITHER: Final = frozenset({"accept", "drop"})
_NEUTRAL: Final = frozenset({"counter", "log", "comment", "mangle", "set", "notrack", "flow", "ct helper"})
_NEUTRAL_TARGETS: Final = frozenset(
    {"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TCPMSS", "CT", "TRACE", "DSCP"}
)


class Outcome(StrEnum):
    """What becomes of a packet."""

    PASSES = "passes"
    DROPPED = "dropped"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True)
class Packet:
    """A forwarded packet: where it came in, where it goes out, and its state in connection tracking."""

    iifname: str
    oifname: str
    source: IPv4Address
    destination: IPv4Address
    state: str

    def values(self) -> Mapping[str, str]:
        """Return what rules compare by name."""
        return {
            "iifname": self.iifname,
            "oifname": self.oifname,
            "iif": self.iifname,
            "oif": self.oifname,
            "ct state": self.state,
            "nfproto": "ipv4",
            "protocol": "ip",
        }


class Ruleset:
    """The chains and rules of a host.

    Raises, on construction:
        ValueError: the text is not what nft prints.
    """

    def __init__(self, text: str) -> None:
        listed = json.loads(text)["nftables"]
        self._bases: list[dict[str, Any]] = []
        self._rules: dict[tuple[str, str, str], list[list[Any]]] = {}
        for entry in listed:
            if chain := entry.get("chain"):
                if chain.get("hook") == "forward" and chain["family"] in ("ip", "inet"):
                    self._bases.append(chain)
            elif rule := entry.get("rule"):
                key = (rule["family"], rule["table"], rule["chain"])
                self._rules.setdefault(key, []).append(rule.get("expr", []))

    def verdicts(self, packet: Packet) -> Iterator[tuple[str, Outcome]]:
        """Yield what each chain at the forward hook, as "ip filter FORWARD", does with `packet`."""
        for chain in self._bases:
            key = (chain["family"], chain["table"], chain["name"])
            end, doubts = self._walk(key, packet, JUMP_DEPTH_MAX)
            final = end or str(chain.get("policy", "accept"))
            outcome = Outcome.PASSES if final == "accept" else Outcome.DROPPED
            yield " ".join(key), Outcome.UNSURE if doubts - {final} else outcome

    def _walk(self, key: tuple[str, str, str], packet: Packet, depth: int) -> tuple[str, set[str]]:
        """Return "accept", "drop", or "" for the chain's end, and which of the two it may be instead."""
        if depth == 0:
            return "", set(_EITHER)
        doubts: set[str] = set()
        for expressions in self._rules.get(key, []):
            holds, verdict, target = _read(expressions, packet)
            if holds is False or verdict == "":
                continue
            end = verdict
            if verdict == "unknown":
                doubts |= _EITHER
                continue
            if verdict in ("jump", "goto"):
                end, deeper = self._walk((*key[:2], target), packet, depth - 1)
                doubts |= deeper
                if end == "" and verdict == "jump":
                    continue
            if verdict == "return":
                end = ""
            if holds:
                return end, doubts
            # An unknown match before a return or goto leaves open what the rules after it do.
            doubts |= {end} if end else _EITHER
        return "", doubts


def _read(expressions: Sequence[Any], packet: Packet) -> tuple[bool | None, str, str]:
    """Return whether a rule's matches hold (None: unknown), its verdict, and where that leads."""
    holds: bool | None = True
    for expression in expressions:
        (name, value), *_ = expression.items()
        if name in ("accept", "drop", "return"):
            return holds, name, ""
        if name == "reject":
            return holds, "drop", ""
        if name in ("jump", "goto"):
            return holds, name, value["target"]
        if name == "match":
            truth = _match(value, packet)
        elif name == "vmap" or (name == "xt" and _is_target(value)):
            return None, "unknown", ""
        elif name in _NEUTRAL or (name == "xt" and _is_neutral(value)):
            truth = True
        else:
            truth = None
        if truth is False:
            return False, "", ""
        if truth is None:
            holds = None
    return holds, "", ""


def _is_neutral(extension: Any) -> bool:
    return isinstance(extension, dict) and extension.get("name") in _NEUTRAL_TARGETS


def _is_target(extension: Any) -> bool:
    """Tell whether an extension of iptables is a target whose verdict is not told."""
    return isinstance(extension, dict) and extension.get("type") == "target" and not _is_neutral(extension)


def _match(value: Mapping[str, Any], packet: Packet) -> bool | None:
    left, right, operator = value["left"], value["right"], value.get("op", "==")
    if not isinstance(left, dict) or operator not in ("==", "!=", "in"):
        return None
    if payload := left.get("payload"):
        if payload.get("protocol") != "ip" or payload.get("field") not in ("saddr", "daddr"):
            return None
        address = packet.source if payload["field"] == "saddr" else packet.destination
        truth = _contains(right, address)
    else:
        key = left.get("meta", {}).get("key") or (
            "ct state" if left.get("ct", {}).get("key") == "state" else ""
        )
        known = packet.values().get(key)
        truth = None if known is None else _equals(right, known)
    return truth if truth is None or operator != "!=" else not truth


def _members(right: Any) -> list[Any]:
    if isinstance(right, dict) and "set" in right:
        inner = right["set"]
        return list(inner) if isinstance(inner, list) else [inner]
    return list(right) if isinstance(right, list) else [right]


def _equals(right: Any, known: str) -> bool | None:
    unclear = False
    for member in _members(right):
        if not isinstance(member, str) or member.startswith("@"):
            unclear = True
        elif member == known or (member.endswith("*") and known.startswith(member[:-1])):
            return True
    return None if unclear else False


def _contains(right: Any, address: IPv4Address) -> bool | None:
    unclear = False
    for member in _members(right):
        try:
            if isinstance(member, dict) and "prefix" in member:
                network = IPv4Network((member["prefix"]["addr"], member["prefix"]["len"]))
                is_inside = address in network
            elif isinstance(member, dict) and "range" in member:
                first, last = (ip_address(end) for end in member["range"])
                is_inside = int(first) <= int(address) <= int(last)
            else:
                is_inside = ip_address(member) == address
        except (ValueError, TypeError, KeyError):
            unclear = True
            continue
        if is_inside:
            return True
    return None if unclear else False
