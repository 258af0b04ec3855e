"""Which TCP connections pass this host: the kernel's connection tracking, over netlink.

It sees what is delivered, sent and routed here as long as a rule of the firewall asks for a connection's
state, as ours do. IPv4 only. Blocking calls are for worker threads; reading events never blocks.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Final

from ramet.linux.attributes import unpack
from ramet.linux.netlink import (
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    REPLY_TIMEOUT_S,
    EventSocket,
    messages,
)

# linux/netlink.h, linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h, nf_conntrack_tcp.h
NETLINK_NETFILTER: Final = 12
NFNL_SUBSYS_CTNETLINK: Final = 1
IPCTNL_MSG_CT_NEW: Final = 0  # Of an update as well.
IPCTNL_MSG_CT_GET: Final = 1
IPCTNL_MSG_CT_DELETE: Final = 2
NF_NETLINK_CONNTRACK_NEW: Final = 1
NF_NETLINK_CONNTRACK_UPDATE: Final = 2
NF_NETLINK_CONNTRACK_DESTROY: Final = 4
CTA_TUPLE_ORIG: Final = 1
CTA_TUPLE_REPLY: Final = 2
CTA_PROTOINFO: Final = 4
CTA_TUPLE_IP: Final = 1
CTA_TUPLE_PROTO: Final = 2
CTA_IP_V4_SRC: Final = 1
CTA_IP_V4_DST: Final = 2
CTA_PROTO_NUM: Final = 1
CTA_PROTO_SRC_PORT: Final = 2
CTA_PROTO_DST_PORT: Final = 3
CTA_PROTOINFO_TCP: Final = 1
CTA_PROTOINFO_TCP_STATE: Final = 1

_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct("=BBH")  # struct nfgenmsg
_ERROR: Final = struct.Struct("=i")
_PORT: Final = struct.Struct(">H")


class TcpState(IntEnum):
    """How far a connection has come, in the kernel's numbers."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


OVER: Final = frozenset({TcpState.NONE, TcpState.TIME_WAIT, TcpState.CLOSE})
"""Nobody has such a connection open any more: the kernel only remembers it."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection: who opened it, to whom, and who answers; that may be another."""

    client: tuple[IPv4Address, int]
    server: tuple[IPv4Address, int]
    responder: tuple[IPv4Address, int]


Seen = tuple[Connection, TcpState]
"""What became of a connection; CLOSE as well if it was forgotten."""


class ConnectionEvents(EventSocket):
    """Tells what becomes of connections."""

    def __init__(self) -> None:
        groups = NF_NETLINK_CONNTRACK_NEW | NF_NETLINK_CONNTRACK_UPDATE | NF_NETLINK_CONNTRACK_DESTROY
        super().__init__(NETLINK_NETFILTER, groups)

    def read(self) -> list[Seen] | None:
        """Return what came since the last call, at most one datagram; None if the kernel dropped some."""
        data = self.receive()
        if data is None:
            return None
        found = []
        for kind, _, _, body in messages(data):
            seen = _parse(body)
            if seen is not None:
                is_gone = kind & 0xFF == IPCTNL_MSG_CT_DELETE
                found.append((seen[0], TcpState.CLOSE) if is_gone else seen)
        return found


def list_connections() -> list[Seen]:
    """Return all connections that the kernel remembers. Blocks.

    Raises:
        OSError: it does not tell.
    """
    body = _FAMILY.pack(socket.AF_INET, 0, 0)
    kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
    header = _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, flags, NETLINK_NETFILTER) as asked:
        asked.settimeout(REPLY_TIMEOUT_S)
        asked.send(header + body)
        return list(_answers(asked))


def _answers(asked: socket.socket) -> Iterator[Seen]:
    while True:
        for kind, _, _, body in messages(asked.recv(RECEIVE_BYTES)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                (code,) = _ERROR.unpack_from(body)
                raise OSError(-code, "connection tracking cannot be listed")
            seen = _parse(body)
            if seen is not None:
                yield seen


def _parse(body: bytes) -> Seen | None:
    """Return what a message tells of a TCP connection; None: it is of none, or of IPv6."""
    if body[0] != socket.AF_INET:
        return None
    attrs = dict(unpack(body[_FAMILY.size :]))
    meant, answered = _ends(attrs.get(CTA_TUPLE_ORIG, b"")), _ends(attrs.get(CTA_TUPLE_REPLY, b""))
    if meant is None or answered is None:
        return None
    tcp = dict(unpack(dict(unpack(attrs.get(CTA_PROTOINFO, b""))).get(CTA_PROTOINFO_TCP, b"")))
    state = tcp.get(CTA_PROTOINFO_TCP_STATE, b"\0")[0]
    return Connection(meant[0], meant[1], answered[0]), TcpState(state)


def _ends(data: bytes) -> tuple[tuple[IPv4Address, int], tuple[IPv4Address, int]] | None:
    """Return who sends and who receives one direction of a TCP connection, each with its port."""
    parts = dict(unpack(data))
    addresses, ports = (
        dict(unpack(parts.get(CTA_TUPLE_IP, b""))),
        dict(unpack(parts.get(CTA_TUPLE_PROTO, b""))),
    )
    if ports.get(CTA_PROTO_NUM) != bytes([socket.IPPROTO_TCP]):
        return None
    return (
        (IPv4Address(addresses[CTA_IP_V4_SRC]), *_PORT.unpack(ports[CTA_PROTO_SRC_PORT])),
        (IPv4Address(addresses[CTA_IP_V4_DST]), *_PORT.unpack(ports[CTA_PROTO_DST_PORT])),
    )
