"""Seeing what the bridge's ports let through, and what the bridge learned."""

import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

RTMGRP_NEIGH = 4
RTM_NEWNEIGH = 28
NDA_LLADDR = 2
NUD_PERMANENT = 0x80
EVENT_BUFFER_BYTES = 8 << 20

# After every filter of the product, which is at priority -300.
_TABLE = """
table bridge seen {
    set macs { type ifname . ether_addr; flags dynamic; }
    set ips { type ifname . ipv4_addr; flags dynamic; }
    chain prerouting {
        type filter hook prerouting priority 0;
        iifname "rmt*" update @macs { iifname . ether saddr }
        iifname "rmt*" ether type ip update @ips { iifname . ip saddr }
        iifname "rmt*" ether type arp update @macs { iifname . arp saddr ether }
        iifname "rmt*" ether type arp update @ips { iifname . arp saddr ip }
    }
}
"""
_ELEMENT = re.compile(r'"([^"]+)" \. ([0-9a-f:.]+)')


@dataclass
class Seen:
    """(port, MAC), (port, address) of frames that passed; (port, MAC) of entries the bridge's table got."""

    macs: set[tuple[str, str]] = field(default_factory=set)
    ips: set[tuple[str, str]] = field(default_factory=set)
    learned: set[tuple[str, str]] = field(default_factory=set)


@contextmanager
def wire_watched() -> Iterator[Seen]:
    """Watch all TAPs inside; what was seen is complete afterwards."""
    seen = Seen()
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER_BYTES)
    events.bind((0, RTMGRP_NEIGH))
    nft("-f", "-", stdin=_TABLE)
    try:
        yield seen
        seen.macs |= set(_ELEMENT.findall(nft("list", "set", "bridge", "seen", "macs")))
        seen.ips |= set(_ELEMENT.findall(nft("list", "set", "bridge", "seen", "ips")))
        names = {index: name for index, name in socket.if_nameindex()}
        seen.learned |= {(names[index], mac) for index, mac in _read_entries(events) if index in names}
    finally:
        nft("delete", "table", "bridge", "seen")
        events.close()


def nft(*arguments: str, stdin: str = "") -> str:
    """Run nft and return what it prints."""
    return subprocess.run(["nft", *arguments], input=stdin, check=True, capture_output=True, text=True).stdout


def _read_entries(events: socket.socket) -> Iterator[tuple[int, str]]:
    """Yield (port's index, MAC) of all entries of bridges that were made or moved."""
    while True:
        try:
            data = events.recv(1 << 20)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            size, kind = struct.unpack_from("=IH", data, at)
            family, index, state = struct.unpack_from("=BxxxIH", data, at + 16)
            # Permanent entries are the bridge's own: the MACs of its ports on this side.
            if kind == RTM_NEWNEIGH and family == socket.AF_BRIDGE and not state & NUD_PERMANENT:
                for mac in _attributes(data[at + 28 : at + size], NDA_LLADDR):
                    yield index, mac.hex(":")
            at += (size + 3) & ~3


def _attributes(data: bytes, wanted: int) -> Iterator[bytes]:
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if kind == wanted:
            yield data[at + 4 : at + size]
        at += (size + 3) & ~3
