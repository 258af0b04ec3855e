"""The limits of TAPs in the kernel: a token bucket on the TAP, and one on an IFB that upload is led through.

Each limited TAP has an IFB of its own, named after its slot. One for all, with a class for each guest, would
have to tell them apart by what is in their frames, which a guest forges, and would send all of them through
one lock. An IFB outlives its TAP, which goes with its VMM; so it is removed when the TAP is seen gone, and a
sweep finds what a killed daemon left. Until then it carries nothing.
"""

import errno
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import anyio
import anyio.to_thread

from ramet.linux import netlink, tc
from ramet.net.bridge import BridgeFacts, has_ipv6
from ramet.net.errors import IfbHeld, NetworkFailed
from ramet.net.rates import RateLimits, bucket_of
from ramet.net.slots import Endpoint

GROUP_BITS: Final = 31
_NOT_THERE: Final = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


def shaping_requests(
    route: netlink.RouteSocket, endpoint: Endpoint, index: int, limits: RateLimits, mtu_bytes: int
) -> list[netlink.Request]:
    """Return what limits the TAP of `endpoint`, which has `index`, in the order to apply it.

    The IFB is made here, if there is to be one: its index must be known.

    Raises:
        OSError: the kernel refused to make it.
        IfbHeld: something else has its name.
    """
    requests = []
    if limits.download_bytes_per_s is not None:
        requests.append(tc.put_bucket(index, bucket_of(limits.download_bytes_per_s, mtu_bytes)))
    if limits.upload_bytes_per_s is not None:
        ifb = _make_ifb(route, endpoint.ifb_name, mtu_bytes)
        requests += [
            *([tc.keep_without_ipv6(ifb)] if has_ipv6() else []),
            tc.put_bucket(ifb, bucket_of(limits.upload_bytes_per_s, mtu_bytes)),
            netlink.set_up(ifb),
            tc.open_ingress(index),
            tc.redirect_ingress(index, ifb),
        ]
    return requests


def _make_ifb(route: netlink.RouteSocket, name: str, mtu_bytes: int) -> int:
    try:
        route.apply([tc.create_ifb(name, mtu_bytes=mtu_bytes)])
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        if not any(link.name == name and link.kind == tc.IFB_KIND for link in route.links()):
            raise IfbHeld(
                f"an interface called {name} exists already and is no IFB",
                remedy=f"rename it, or delete it: ip link delete {name}",
                interface=name,
            ) from error
    return netlink.interface_index(name)


class TapShaping:
    """The limits of the TAPs of one bridge. Kernel calls run in threads, counted by `limiter`."""

    def __init__(self, limiter: anyio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._mtu_bytes = 0

    def open(self, bridge: BridgeFacts) -> None:
        """Learn of the bridge. Before all else."""
        self._mtu_bytes = bridge.mtu_bytes

    async def present(self, endpoints: Iterable[Endpoint]) -> Mapping[Endpoint, RateLimits]:
        """Return the limits that are whole in the kernel, of those of `endpoints` that have a TAP.

        Raises:
            NetworkFailed: the kernel refused.
        """
        return await anyio.to_thread.run_sync(self._present, tuple(endpoints), limiter=self._limiter)

    def _present(self, endpoints: Collection[Endpoint]) -> dict[Endpoint, RateLimits]:
        found = {}
        try:
            with netlink.RouteSocket() as route:
                links = {link.name: link for link in route.links()}
                rates = tc.list_rates(route)
                for endpoint in endpoints:
                    tap, ifb = links.get(endpoint.tap_name), links.get(endpoint.ifb_name)
                    if tap is None:
                        continue
                    upload = None
                    if ifb is not None and ifb.is_up and tc.redirected_to(route, tap.index) == ifb.index:
                        upload = rates.get(ifb.index)
                    found[endpoint] = RateLimits(rates.get(tap.index), upload)
        except OSError as error:
            raise NetworkFailed.because("list the limits of TAPs", error) from error
        return found

    async def apply(self, endpoint: Endpoint, limits: RateLimits) -> bool:
        """Give the TAP of `endpoint` these limits and no others; tell whether there is a TAP.

        A limit that stays or changes holds throughout.

        Raises:
            NetworkFailed, IfbHeld: the TAP may have some of the limits it had and some of these.
        """
        return await anyio.to_thread.run_sync(self._apply, endpoint, limits, limiter=self._limiter)

    def _apply(self, endpoint: Endpoint, limits: RateLimits) -> bool:
        try:
            index = netlink.interface_index(endpoint.tap_name)
        except OSError:
            return False
        try:
            with netlink.RouteSocket() as route:
                if limits.download_bytes_per_s is None:
                    _undo(route, tc.remove_bucket(index))
                if limits.upload_bytes_per_s is None:
                    _undo(route, tc.close_ingress(index))
                    _delete_ifbs(route, [endpoint.ifb_name])
                route.apply(shaping_requests(route, endpoint, index, limits, self._mtu_bytes))
        except OSError as error:
            if not netlink.interface_exists(endpoint.tap_name):
                return False  # It went meanwhile; its IFB goes with its release.
            raise NetworkFailed.because(f"limit {endpoint.tap_name}", error) from error
        return True

    async def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Remove what `apply` left beside the TAPs of `endpoints`, which are gone. Idempotent.

        Raises:
            NetworkFailed: the kernel refused, and none of it may be gone.
        """
        names = [endpoint.ifb_name for endpoint in endpoints]
        await anyio.to_thread.run_sync(remove_ifbs, names, limiter=self._limiter)


def is_ifb_name(name: str, tap_prefix: str) -> bool:
    """Tell whether an IFB of that name is ours."""
    return re.fullmatch(re.escape(tap_prefix) + r"u\d{4}", name) is not None


def remove_ifbs(names: Collection[str]) -> None:
    """Delete those of the IFBs that are there, all in one wait.

    Raises:
        NetworkFailed: the kernel refused.
    """
    if not any(netlink.interface_exists(name) for name in names):
        return
    try:
        with netlink.RouteSocket() as route:
            _delete_ifbs(route, names)
    except OSError as error:
        raise NetworkFailed.because("delete IFBs", error) from error


def _delete_ifbs(route: netlink.RouteSocket, names: Collection[str]) -> None:
    wanted = set(names)
    indexes = [link.index for link in route.links() if link.kind == tc.IFB_KIND and link.name in wanted]
    if not indexes:
        return
    group = 1 + secrets.randbits(GROUP_BITS)  # Whatever is in it goes: it must be nobody else's.
    for index in indexes:
        _undo(route, tc.set_group(index, group))
    _undo(route, tc.delete_group(group))


def _undo(route: netlink.RouteSocket, request: netlink.Request) -> None:
    """Apply what may find nothing to undo."""
    try:
        route.apply([request])
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
