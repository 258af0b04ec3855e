"""Traffic control, as far as token buckets on interfaces and a detour for what comes in, by netlink.

An interface's root queue is a token bucket (TBF): it holds what the host sends out of it to a rate. What
comes in has no queue. So it is sent on a detour: an ingress queue with one filter (u32) that matches every
frame and one action (mirred) that hands it to an intermediate functional block (IFB), a device whose own
token bucket lets it pass at its rate and gives it back to where it came from, as if it had come in just then.
If the IFB goes away under it, the detour drops: what is limited is never let through unlimited.

Put on an interface that is still down, a queue costs the kernel some 30 µs; on one that is up, it may wait
until all processors have let go of the old one.
"""

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ramet.linux.attributes import as_text, as_u32, as_u64, attr, nest, text, u8, u32, u64, unpack
from ramet.linux.netlink import (
    IFLA_AF_SPEC,
    IFLA_IFNAME,
    IFLA_INET6_ADDR_GEN_MODE,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    IN6_ADDR_GEN_MODE_NONE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELLINK,
    RTM_NEWLINK,
    Request,
    RouteSocket,
)

IFB_KIND: Final = "ifb"
RATE32_BYTES_PER_S_MAX: Final = 0xFFFF_FFFF  # A faster one has an attribute of its own.

# linux/rtnetlink.h, linux/if_link.h
RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_NEWTFILTER: Final = 44
RTM_GETTFILTER: Final = 46
IFLA_GROUP: Final = 27
TCA_KIND: Final = 1
TCA_OPTIONS: Final = 2

# linux/pkt_sched.h
TC_H_ROOT: Final = 0xFFFF_FFFF
TC_H_INGRESS: Final = 0xFFFF_FFF1
TC_LINKLAYER_ETHERNET: Final = 1  # Spares us the table of transmission times that old kernels wanted.
TCA_TBF_PARMS: Final = 1
TCA_TBF_RATE64: Final = 4
TCA_TBF_BURST: Final = 6

# linux/pkt_cls.h, linux/tc_act/tc_mirred.h
TC_U32_TERMINAL: Final = 1
TC_ACT_STOLEN: Final = 4
TCA_U32_SEL: Final = 5
TCA_U32_ACT: Final = 7
TCA_ACT_KIND: Final = 1
TCA_ACT_OPTIONS: Final = 2
TCA_MIRRED_PARMS: Final = 2
TCA_EGRESS_REDIR: Final = 1
ETH_P_ALL: Final = 3  # linux/if_ether.h

BUCKET_HANDLE: Final = 0x0001_0000
INGRESS_HANDLE: Final = 0xFFFF_0000
FILTER_HANDLE: Final = 0x8000_0800  # The first of the first table, which is made with it.
FILTER_PRIORITY: Final = 1

_TC: Final = struct.Struct("=BxxxiIII")  # struct tcmsg
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_RATE: Final = struct.Struct("=BBHhHI")  # struct tc_ratespec
_TBF: Final = struct.Struct(f"={_RATE.size}s{_RATE.size}sIII")  # struct tc_tbf_qopt
_U32_SELECTOR: Final = struct.Struct("=BBBxHHhhI")  # struct tc_u32_sel, its keys after it
_U32_KEY: Final = struct.Struct("=IIii")  # struct tc_u32_key
_MIRRED: Final = struct.Struct("=IIiiiiI")  # struct tc_mirred


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A queue that lets through `rate_bytes_per_s`, counted with the frames' headers.

    `burst_bytes` may follow a silence at once; `queue_bytes` wait at most, and what comes then is dropped.
    """

    rate_bytes_per_s: int
    burst_bytes: int
    queue_bytes: int


def put_bucket(index: int, bucket: TokenBucket) -> Request:
    """Make `bucket` the root queue of interface `index`; one that is there takes its values."""
    rate32 = min(bucket.rate_bytes_per_s, RATE32_BYTES_PER_S_MAX)
    rate = _RATE.pack(0, TC_LINKLAYER_ETHERNET, 0, 0, 0, rate32)
    parms = _TBF.pack(rate, bytes(_RATE.size), bucket.queue_bytes, 0, 0)
    options = [attr(TCA_TBF_PARMS, parms), u32(TCA_TBF_BURST, bucket.burst_bytes)]
    if bucket.rate_bytes_per_s > RATE32_BYTES_PER_S_MAX:
        options.append(u64(TCA_TBF_RATE64, bucket.rate_bytes_per_s))
    return Request(
        RTM_NEWQDISC,
        NLM_F_CREATE | NLM_F_REPLACE,
        _TC.pack(0, index, BUCKET_HANDLE, TC_H_ROOT, 0) + text(TCA_KIND, "tbf") + nest(TCA_OPTIONS, *options),
        "limit the rate",
    )


def remove_bucket(index: int) -> Request:
    """Take away what `put_bucket` put. ENOENT if there is none."""
    return Request(
        RTM_DELQDISC, 0, _TC.pack(0, index, BUCKET_HANDLE, TC_H_ROOT, 0), "take away the limit of the rate"
    )


def create_ifb(name: str, *, mtu_bytes: int) -> Request:
    """An IFB, still down. EEXIST if the name is taken."""
    body = (
        _LINK.pack(0, 0, 0, 0, 0)
        + text(IFLA_IFNAME, name)
        + u32(IFLA_MTU, mtu_bytes)
        + nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, IFB_KIND))
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create IFB {name}")


def keep_without_ipv6(index: int) -> Request:
    """Let interface `index`, still down, get no IPv6 address of its own. Only where there is IPv6."""
    quiet = u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
    body = _LINK.pack(0, 0, index, 0, 0) + nest(IFLA_AF_SPEC, nest(socket.AF_INET6, quiet))
    return Request(RTM_NEWLINK, 0, body, "keep without IPv6")


def open_ingress(index: int) -> Request:
    """Give interface `index` an ingress queue, for `redirect_ingress`. One that is there is kept."""
    return Request(
        RTM_NEWQDISC,
        NLM_F_CREATE,
        _TC.pack(0, index, INGRESS_HANDLE, TC_H_INGRESS, 0) + text(TCA_KIND, "ingress"),
        "open the ingress queue",
    )


def close_ingress(index: int) -> Request:
    """Take away the ingress queue with its detour. ENOENT or EINVAL if there is none."""
    return Request(
        RTM_DELQDISC, 0, _TC.pack(0, index, INGRESS_HANDLE, TC_H_INGRESS, 0), "close the ingress queue"
    )


def redirect_ingress(index: int, ifb: int) -> Request:
    """Send all that comes in on interface `index` through interface `ifb`. After `open_ingress`.

    A detour that is there leads to `ifb` from now on.
    """
    selector = _U32_SELECTOR.pack(TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _U32_KEY.pack(0, 0, 0, 0)
    mirred = _MIRRED.pack(0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, ifb)
    action = nest(1, text(TCA_ACT_KIND, "mirred"), nest(TCA_ACT_OPTIONS, attr(TCA_MIRRED_PARMS, mirred)))
    return Request(
        RTM_NEWTFILTER,
        NLM_F_CREATE | NLM_F_REPLACE,
        _TC.pack(0, index, FILTER_HANDLE, INGRESS_HANDLE, FILTER_PRIORITY << 16 | socket.htons(ETH_P_ALL))
        + text(TCA_KIND, "u32")
        + nest(TCA_OPTIONS, attr(TCA_U32_SEL, selector), nest(TCA_U32_ACT, action)),
        "redirect what comes in",
    )


def set_group(index: int, group: int) -> Request:
    """Put interface `index` into a group, for `delete_group`."""
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + u32(IFLA_GROUP, group), "set the group")


def delete_group(group: int) -> Request:
    """Delete all interfaces of a group. ENODEV if there are none.

    A deletion waits some 20 ms for all processors, under the lock of all changes; these share one wait.
    """
    return Request(
        RTM_DELLINK,
        0,
        _LINK.pack(0, 0, 0, 0, 0) + u32(IFLA_GROUP, group),
        "delete a group of interfaces",
    )


def list_rates(route: RouteSocket) -> Mapping[int, int]:
    """Return the rate of every root token bucket, in bytes per second, by the index of its interface.

    Raises:
        OSError: the kernel refused.
    """
    found = {}
    for kind, body in route.dump(RTM_GETQDISC, _TC.pack(0, 0, 0, 0, 0)):
        _, index, _, parent, _ = _TC.unpack_from(body)
        attrs = dict(unpack(body[_TC.size :]))
        if kind != RTM_NEWQDISC or parent != TC_H_ROOT or as_text(attrs.get(TCA_KIND)) != "tbf":
            continue
        options = dict(unpack(attrs.get(TCA_OPTIONS, b"")))
        rate, *_ = _TBF.unpack_from(options[TCA_TBF_PARMS])
        found[index] = as_u64(options.get(TCA_TBF_RATE64), _RATE.unpack(rate)[-1])
    return found


def redirected_to(route: RouteSocket, index: int) -> int | None:
    """Return the index of the interface that `redirect_ingress` sends to; 0 is one that is gone.

    None if nothing is redirected.

    Raises:
        OSError: the kernel refused.
    """
    request = _TC.pack(0, index, 0, INGRESS_HANDLE, 0)
    target = None
    for kind, body in route.dump(RTM_GETTFILTER, request):
        handle = _TC.unpack_from(body)[2]
        if kind != RTM_NEWTFILTER or handle != FILTER_HANDLE:
            continue
        options = dict(unpack(dict(unpack(body[_TC.size :])).get(TCA_OPTIONS, b"")))
        for _, action in unpack(options.get(TCA_U32_ACT, b"")):
            described = dict(unpack(action))
            if as_text(described.get(TCA_ACT_KIND)) == "mirred":
                mirred = dict(unpack(described[TCA_ACT_OPTIONS]))[TCA_MIRRED_PARMS]
                target = as_u32(mirred[_MIRRED.size - 4 :], 0)
    return target
