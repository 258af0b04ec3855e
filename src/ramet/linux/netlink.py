"""Routing netlink, as far as a bridge of TAPs needs it, in blocking calls made for worker threads.

The kernel carries out a netlink request inside `send`, and there it waits for the RTNL lock, which one
deletion of a TAP can hold for 20 ms. So these calls belong in a thread, not on the event loop, and several
requests go into one `send`. A library that speaks netlink through a loop of its own gives neither; what it
would save us is this one file.

Every function raises OSError with the kernel's errno and words. No policy lives here.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final, Self

from ramet.linux.attributes import as_text, as_u32, attr, nest, u8, u32, unpack

REPLY_TIMEOUT_S: Final = 10.0  # The kernel answers within `send`; only a stuck RTNL lock makes us wait.
RECEIVE_BYTES: Final = 1 << 18  # One read of a dump; the kernel sends at most 32 KiB a datagram.
EVENT_BUFFER_BYTES: Final = 1 << 20

# linux/netlink.h
NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_REPLACE: Final = 0x100
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_ACK_TLVS: Final = 0x200
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NLMSGERR_ATTR_MSG: Final = 1

# linux/rtnetlink.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
RTMGRP_LINK: Final = 1
RT_TABLE_MAIN: Final = 254
RTN_UNICAST: Final = 1
RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_PRIORITY: Final = 6
RTA_TABLE: Final = 15

# linux/if_link.h, linux/if_addr.h, linux/if.h
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_AF_SPEC: Final = 26
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_TUN_PERSIST: Final = 6  # linux/if_link.h
IFLA_INFO_SLAVE_KIND: Final = 4
IFLA_INFO_SLAVE_DATA: Final = 5
IFLA_INET6_ADDR_GEN_MODE: Final = 8
IN6_ADDR_GEN_MODE_NONE: Final = 1
IFLA_BR_STP_STATE: Final = 5
IFLA_BR_MCAST_SNOOPING: Final = 23
IFLA_BR_MULTI_BOOLOPT: Final = 46
BR_BOOLOPT_NO_LL_LEARN: Final = 1 << 0
IFLA_BRPORT_LEARNING: Final = 8
IFLA_BRPORT_UNICAST_FLOOD: Final = 9
IFLA_BRPORT_MCAST_FLOOD: Final = 27
IFLA_BRPORT_GROUP_FWD_MASK: Final = 31
GROUP_FWD_MASK_ALL: Final = 0xFFFD  # 01:80:c2:00:00:00 to :0f, less :01, which the kernel always drops.
IFLA_BRPORT_ISOLATED: Final = 33
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFF_UP: Final = 1
IFF_RUNNING: Final = 0x40
SIOCGIFFLAGS: Final = 0x8913  # linux/sockios.h

# linux/neighbour.h
NDA_DST: Final = 1
NDA_LLADDR: Final = 2
NUD_NOARP: Final = 0x40
NUD_PERMANENT: Final = 0x80
NTF_MASTER: Final = 0x04

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDR: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NEIGH: Final = struct.Struct("=BxxxiHBB")  # struct ndmsg
_ERROR: Final = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel; `what` says it in words, for the error."""

    kind: int
    flags: int
    body: bytes
    what: str


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. `kind` is empty for hardware and loopback, "tun" for TAPs; `master` 0 is none.

    `is_persistent`: a TAP that outlives whoever holds it.
    """

    index: int
    name: str
    kind: str
    master: int
    is_up: bool
    mac: str
    mtu_bytes: int
    is_persistent: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 unicast route; `interface` is 0 where it has none or several."""

    destination: IPv4Network
    interface: int
    table: int
    metric: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An IPv4 neighbour, or (with `ip` None) an entry of a bridge's forwarding table on port `interface`."""

    interface: int
    ip: IPv4Address | None
    mac: str
    is_permanent: bool


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def create_bridge(name: str, *, mac: str, mtu_bytes: int) -> Request:
    """A bridge without STP and multicast snooping, that learns nothing from link-local frames.

    The MAC is set, because the kernel would otherwise take the lowest of the ports', a new one with
    every guest. Link-local frames (01:80:c2:00:00:0x) are learned from behind the back of prerouting.
    """
    return Request(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        _LINK.pack(0, 0, 0, 0, 0)
        + attr(IFLA_IFNAME, name.encode() + b"\0")
        + _bridge_attributes(mac=mac, mtu_bytes=mtu_bytes),
        f"create bridge {name}",
    )


def set_bridge(index: int, *, mac: str | None, mtu_bytes: int) -> Request:
    """Give an existing bridge what `create_bridge` gives, and set it up. `mac` None keeps the one it has.

    Setting the MAC, even to what it is, makes the kernel forget all neighbours on the bridge.
    """
    return Request(
        RTM_NEWLINK,
        0,
        _LINK.pack(0, 0, index, IFF_UP, IFF_UP) + _bridge_attributes(mac=mac, mtu_bytes=mtu_bytes),
        "set the bridge's options",
    )


def _bridge_attributes(*, mac: str | None, mtu_bytes: int) -> bytes:
    boolopt = struct.pack("=II", BR_BOOLOPT_NO_LL_LEARN, BR_BOOLOPT_NO_LL_LEARN)
    options = (
        u32(IFLA_BR_STP_STATE, 0),
        u8(IFLA_BR_MCAST_SNOOPING, 0),
        attr(IFLA_BR_MULTI_BOOLOPT, boolopt),
    )
    return (
        (attr(IFLA_ADDRESS, _mac(mac)) if mac else b"")
        + u32(IFLA_MTU, mtu_bytes)
        + nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"bridge\0"), nest(IFLA_INFO_DATA, *options))
    )


def set_up(index: int) -> Request:
    """Set an interface up."""
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, IFF_UP, IFF_UP), "set up")


def set_down(index: int) -> Request:
    """Set an interface down: a TAP then carries nothing, and gives its reader nothing."""
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, IFF_UP), "set down")


def enslave(index: int, bridge: int, *, mtu_bytes: int, has_ipv6: bool) -> Request:
    """Make interface `index`, still down, a port of `bridge`; it gets no IPv6 address of its own."""
    body = _LINK.pack(0, 0, index, 0, 0) + u32(IFLA_MTU, mtu_bytes) + u32(IFLA_MASTER, bridge)
    if has_ipv6:
        quiet = u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
        body += nest(IFLA_AF_SPEC, nest(socket.AF_INET6, quiet))
    return Request(RTM_NEWLINK, 0, body, "attach to the bridge")


def open_port(index: int, *, learning: bool) -> Request:
    """Isolate bridge port `index`, spare it what is not addressed to it, and set it up.

    Frames to link-local MACs take the way of all others, through the hooks of the firewall; by default
    the bridge hands those to 01:80:c2:00:00:0e straight to the host, as if it had received them on the port.

    A message apart from `enslave`: the kernel sets port options before it sets a master.
    """
    options = (
        u8(IFLA_BRPORT_ISOLATED, 1),
        u8(IFLA_BRPORT_LEARNING, int(learning)),
        u8(IFLA_BRPORT_UNICAST_FLOOD, 0),
        u8(IFLA_BRPORT_MCAST_FLOOD, 0),
        attr(IFLA_BRPORT_GROUP_FWD_MASK, struct.pack("=H", GROUP_FWD_MASK_ALL)),
    )
    info = nest(IFLA_LINKINFO, attr(IFLA_INFO_SLAVE_KIND, b"bridge\0"), nest(IFLA_INFO_SLAVE_DATA, *options))
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, IFF_UP, IFF_UP) + info, "set up the port")


def delete_link(index: int) -> Request:
    """Delete an interface."""
    return Request(RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0), "delete the interface")


def add_address(index: int, address: IPv4Interface) -> Request:
    """Add an IPv4 address with its prefix; adding it again is no error."""
    packed = address.ip.packed
    return Request(
        RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_REPLACE,
        _ADDR.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index)
        + attr(IFA_LOCAL, packed)
        + attr(IFA_ADDRESS, packed),
        f"add address {address}",
    )


def add_forwarding(port: int, mac: str) -> Request:
    """Tell the bridge that `mac` is behind `port`, for as long as the port exists."""
    return Request(
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        _NEIGH.pack(socket.AF_BRIDGE, port, NUD_NOARP, NTF_MASTER, 0) + attr(NDA_LLADDR, _mac(mac)),
        f"forward {mac} to its port",
    )


def add_neighbour(index: int, ip: IPv4Address, mac: str) -> Request:
    """Tell the host that `ip` has `mac` on interface `index`, for good: nobody is asked by ARP."""
    return Request(
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        _NEIGH.pack(socket.AF_INET, index, NUD_PERMANENT, 0, 0)
        + attr(NDA_DST, ip.packed)
        + attr(NDA_LLADDR, _mac(mac)),
        f"add neighbour {ip}",
    )


def delete_neighbour(index: int, ip: IPv4Address) -> Request:
    """Forget what `add_neighbour` said. ENOENT if nothing was said."""
    return Request(
        RTM_DELNEIGH,
        0,
        _NEIGH.pack(socket.AF_INET, index, 0, 0, 0) + attr(NDA_DST, ip.packed),
        f"delete neighbour {ip}",
    )


class RouteSocket:
    """A netlink socket of the network namespace the calling thread is in. Use from one thread at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self._socket.bind((0, 0))
            self._socket.settimeout(REPLY_TIMEOUT_S)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def apply(self, requests: Sequence[Request]) -> None:
        """Send all `requests` at once and wait for every answer.

        The kernel goes on after a request that fails, so each must be harmless if an earlier one did.

        Raises:
            OSError: the first failure.
        """
        if not requests:
            return
        data, named = bytearray(), {}
        for request in requests:
            self._sequence += 1
            named[self._sequence] = request.what
            data += self._frame(request.kind, request.flags | NLM_F_ACK, request.body)
        failure: OSError | None = None
        self._socket.send(data)
        while named:
            for kind, flags, sequence, body in self._receive():
                what = named.pop(sequence, None)
                if kind == NLMSG_ERROR and what is not None and failure is None:
                    failure = _failure(what, flags, body)
        if failure is not None:
            raise failure

    def links(self) -> list[Link]:
        """Return all interfaces."""
        replies = self.dump(RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0))
        return [_parse_link(body) for kind, body in replies if kind == RTM_NEWLINK]

    def addresses(self) -> list[tuple[int, IPv4Interface]]:
        """Return all IPv4 addresses, each with the index of its interface."""
        found = []
        for _, body in self.dump(RTM_GETADDR, _ADDR.pack(socket.AF_INET, 0, 0, 0, 0)):
            _, prefix_length, _, _, index = _ADDR.unpack_from(body)
            attrs = dict(unpack(body[_ADDR.size :]))
            packed = attrs.get(IFA_LOCAL) or attrs.get(IFA_ADDRESS)
            if packed is not None:
                found.append((index, IPv4Interface((IPv4Address(packed), prefix_length))))
        return found

    def routes(self) -> list[Route]:
        """Return the IPv4 unicast routes of all tables but the local one."""
        found = []
        for _, body in self.dump(RTM_GETROUTE, _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, prefix_length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
            if kind != RTN_UNICAST:
                continue
            attrs = dict(unpack(body[_ROUTE.size :]))
            found.append(
                Route(
                    destination=IPv4Network((attrs.get(RTA_DST, bytes(4)), prefix_length)),
                    interface=as_u32(attrs.get(RTA_OIF), 0),
                    table=as_u32(attrs.get(RTA_TABLE), table),
                    metric=as_u32(attrs.get(RTA_PRIORITY), 0),
                )
            )
        return found

    def neighbours(self, index: int) -> list[Neighbour]:
        """Return the IPv4 neighbours on interface `index`."""
        return [n for n in self._neighbours(socket.AF_INET) if n.interface == index]

    def forwarding(self) -> list[Neighbour]:
        """Return the forwarding tables of all bridges."""
        return list(self._neighbours(socket.AF_BRIDGE))

    def _neighbours(self, family: int) -> Iterator[Neighbour]:
        for _, body in self.dump(RTM_GETNEIGH, _NEIGH.pack(family, 0, 0, 0, 0)):
            found_family, index, state, _, _ = _NEIGH.unpack_from(body)
            if found_family != family:
                continue
            attrs = dict(unpack(body[_NEIGH.size :]))
            ip = IPv4Address(attrs[NDA_DST]) if family == socket.AF_INET else None
            mac = attrs.get(NDA_LLADDR, b"").hex(":")
            yield Neighbour(index, ip, mac, bool(state & (NUD_PERMANENT | NUD_NOARP)))

    def _frame(self, kind: int, flags: int, body: bytes) -> bytes:
        size = _HEADER.size + len(body)
        return _HEADER.pack(size, kind, flags | NLM_F_REQUEST, self._sequence, 0) + body

    def dump(self, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Ask for a list; return the answers, each as (kind, body)."""
        self._sequence += 1
        self._socket.send(self._frame(kind, NLM_F_DUMP, body))
        while True:
            for reply, flags, sequence, content in self._receive():
                if sequence != self._sequence:
                    continue
                if reply == NLMSG_DONE:
                    return
                if reply == NLMSG_ERROR:
                    failure = _failure("list", flags, content)
                    if failure is not None:
                        raise failure
                    return
                yield reply, content

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        return list(messages(self._socket.recv(RECEIVE_BYTES)))


class EventSocket:
    """What the kernel tells the multicast `groups` of a netlink protocol, for an event loop to watch.

    Listens from its creation on, in the network namespace of the calling thread.

    Raises, on construction:
        OSError: the kernel does not tell, or not us.
    """

    def __init__(self, protocol: int, groups: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER_BYTES)
            self._socket.bind((0, groups))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, readable when there is something."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._socket.close()

    def receive(self) -> bytes | None:
        """Return the next datagram, empty if none is there; None if the kernel dropped some."""
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return None


class LinkRemovals(EventSocket):
    """Tells which interfaces disappear."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE, RTMGRP_LINK)

    def read(self) -> set[str] | None:
        """Return the names gone since the last call, without waiting; None if the kernel dropped some."""
        gone: set[str] = set()
        while data := self.receive():
            for kind, _, _, body in messages(data):
                # The bridge family reports a port that leaves in the same words.
                if kind == RTM_DELLINK and body[0] != socket.AF_BRIDGE:
                    gone.add(_parse_link(body).name)
        return None if data is None else gone


def interface_index(name: str) -> int:
    """Return the index of interface `name`. Takes no lock.

    Raises:
        OSError: there is none.
    """
    return socket.if_nametoindex(name)


def interface_name(index: int) -> str:
    """Return the name of interface `index`. Takes no lock.

    Raises:
        OSError: there is none.
    """
    return socket.if_indextoname(index)


def is_running(name: str) -> bool:
    """Tell whether an interface that is up can carry frames, or drops them still. Takes no lock.

    Raises:
        OSError: there is none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("=16sH22x", name.encode(), 0))
    (flags,) = struct.unpack_from("=H", answer, 16)
    return bool(flags & IFF_RUNNING)


def interface_exists(name: str) -> bool:
    """Tell whether this namespace has an interface called `name`. Takes no lock."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Return the netlink messages in `data`, each as (kind, flags, sequence, body)."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            return
        yield kind, flags, sequence, data[at + _HEADER.size : at + size]
        at += (size + 3) & ~3


def _failure(what: str, flags: int, body: bytes) -> OSError | None:
    (code,) = _ERROR.unpack_from(body)
    if code == 0:
        return None
    text = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:  # With NETLINK_CAP_ACK only the header of our request comes before them.
        said = dict(unpack(body[_ERROR.size + _HEADER.size :])).get(NLMSGERR_ATTR_MSG)
        if said:
            text = said.rstrip(b"\0").decode(errors="replace")
    return OSError(-code, f"{what}: {text}")


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attrs = dict(unpack(body[_LINK.size :]))
    info = dict(unpack(attrs.get(IFLA_LINKINFO, b"")))
    kind = as_text(info.get(IFLA_INFO_KIND))
    details = dict(unpack(info.get(IFLA_INFO_DATA, b""))) if kind == "tun" else {}
    return Link(
        index=index,
        name=as_text(attrs.get(IFLA_IFNAME)),
        kind=kind,
        master=as_u32(attrs.get(IFLA_MASTER), 0),
        is_up=bool(flags & IFF_UP),
        mac=attrs.get(IFLA_ADDRESS, b"").hex(":"),
        mtu_bytes=as_u32(attrs.get(IFLA_MTU), 0),
        is_persistent=details.get(IFLA_TUN_PERSIST) == b"\1",
    )
