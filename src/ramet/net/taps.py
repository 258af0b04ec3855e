"""TAPs as ports of the bridge: opened, attached, and seen to be gone.

A TAP is not persistent (see `ramet.linux.tun`): its descriptor goes to the VMM, and it dies with the VMM.
So releasing one means waiting for the kernel's word that it is gone, not deleting it. Only one that its VMM
opens by name is persistent; it is ended when nobody holds it any more.

A TAP's forwarding entry is fixed and its port learns nothing, so a guest can neither take another's place in
the bridge's table nor be flooded with what is meant for others; it is isolated, so ports do not reach each
other. Its limits are put on while it is still down, and it is handed out last: it is never there without.
"""

import asyncio
import errno
import os
import time
from typing import Final

import anyio
import anyio.to_thread

from ramet.linux import netlink, tun
from ramet.linux.bpf import DROP
from ramet.linux.ethtool import has_link
from ramet.net.bridge import BridgeFacts, has_ipv6
from ramet.net.errors import NetworkFailed, TapHeld
from ramet.net.rates import UNLIMITED, RateLimits
from ramet.net.slots import Endpoint
from ramet.net.tap_shaping import shaping_requests

KERNEL_STAGE_WIDTH: Final = 4  # All of it waits for one lock, RTNL: more threads would only queue there.
HELD_RETRY_S: Final = 0.05
"""Nobody tells that a persistent TAP was let go of; a VMM that is gone has done so."""
RUNNING_POLL_S: Final = 0.002
RUNNING_TIMEOUT_S: Final = 5.0
"""A worker of the kernel may wait for the processor like anybody else."""
GONE_TIMEOUT_S: Final = 10.0  # A TAP takes about 20 ms to go once the last descriptor is closed.


class Tap:
    """A TAP. The descriptor is not inherited by default; pass it to the VMM, then `close` ours.

    Without a descriptor it is persistent, and for the VMM to open.
    """

    def __init__(self, name: str, ifindex: int, fd: int | None) -> None:
        self.name = name
        self.ifindex = ifindex
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor, non-blocking, with a virtio_net_hdr before every frame. Open until `close`."""
        assert self._fd is not None, f"{self.name} is closed"
        return self._fd

    @property
    def is_open(self) -> bool:
        """Tell whether we hold the descriptor."""
        return self._fd is not None

    def close(self) -> None:
        """Let go of the descriptor. Idempotent.

        Cheap while a VMM holds it too; the last to close makes the kernel delete the TAP, which blocks
        for about 20 ms.
        """
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class Taps:
    """The TAPs of one bridge. Kernel calls run in threads, KERNEL_STAGE_WIDTH at a time.

    `open` before use, `close` after it.
    """

    def __init__(self) -> None:
        self.limiter = anyio.CapacityLimiter(KERNEL_STAGE_WIDTH)
        self._bridge: BridgeFacts | None = None
        self._has_ipv6 = False
        self._removals: netlink.LinkRemovals | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def open(self, bridge: BridgeFacts) -> None:
        """Begin to watch the kernel's word about interfaces that go; TAPs become ports of `bridge`.

        Raises:
            NetworkFailed: the kernel gives no netlink socket.
        """
        self.close()
        try:
            self._removals = netlink.LinkRemovals()
        except OSError as error:
            raise NetworkFailed.because("report removed interfaces", error) from error
        asyncio.get_running_loop().add_reader(self._removals.fileno(), self._read_removals)
        self._bridge = bridge
        self._has_ipv6 = has_ipv6()

    def close(self) -> None:
        """Stop watching. TAPs are left alone. Idempotent."""
        removals, self._removals = self._removals, None
        if removals is not None:
            asyncio.get_running_loop().remove_reader(removals.fileno())
            removals.close()

    async def open_tap(
        self,
        endpoint: Endpoint,
        limits: RateLimits = UNLIMITED,
        *,
        by_name: bool = False,
        is_deaf: bool = False,
    ) -> Tap:
        """Create the TAP of `endpoint`, limited, make it an isolated port of the bridge and set it up.

        With `by_name` it is persistent and nobody holds it. While it `is_deaf` no frame comes to whoever
        reads it (`ramet.net.armed` has it hear again).

        Its firewall element must be there already. On failure there is no TAP; its IFB may be.

        Raises:
            TapHeld: an interface of that name exists.
            IfbHeld: an interface has the name of its IFB.
            NetworkFailed: the kernel refused, a bridge with 1,023 ports among the reasons.
        """
        return await anyio.to_thread.run_sync(
            self._open_tap, endpoint, limits, by_name, is_deaf, limiter=self.limiter
        )

    def _open_tap(self, endpoint: Endpoint, limits: RateLimits, by_name: bool, is_deaf: bool) -> Tap:
        assert self._bridge is not None, "open() comes first"
        try:
            fd = tun.open_tap(endpoint.tap_name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise NetworkFailed.because(f"create TAP {endpoint.tap_name}", error) from error
            raise TapHeld(
                f"an interface called {endpoint.tap_name} exists already",
                remedy="end the process that holds it",
                interface=endpoint.tap_name,
            ) from error
        try:
            if is_deaf:
                tun.attach_filter(fd, [DROP])
            with netlink.RouteSocket() as route:
                index = netlink.interface_index(endpoint.tap_name)
                mtu_bytes = self._bridge.mtu_bytes
                enslave = netlink.enslave(
                    index, self._bridge.index, mtu_bytes=mtu_bytes, has_ipv6=self._has_ipv6
                )
                route.apply([enslave])
                route.apply(
                    [
                        *shaping_requests(route, endpoint, index, limits, mtu_bytes),
                        netlink.add_forwarding(index, endpoint.mac),
                        netlink.add_neighbour(self._bridge.index, endpoint.ip, endpoint.mac),
                        netlink.open_port(index, learning=False),
                    ]
                )
                if is_deaf:
                    self._wait_running(route, endpoint)
            if by_name:
                tun.persist(fd)  # Last: until here it goes with us, whatever happens.
        except OSError as error:
            os.close(fd)
            raise NetworkFailed.because(f"attach TAP {endpoint.tap_name}", error) from error
        except BaseException:
            os.close(fd)
            raise
        if by_name:
            os.close(fd)
            return Tap(endpoint.tap_name, index, None)
        return Tap(endpoint.tap_name, index, fd)

    def _wait_running(self, route: netlink.RouteSocket, endpoint: Endpoint) -> None:
        """Return when what the host sends to `endpoint` comes to its TAP: somebody waits for it there.

        A bridge without ports carries nothing, and drops what is sent for as long as the kernel takes, in a
        worker of its own, to see that it has one again; or it seems to carry, as the worker has not seen yet
        that the last port went. So the kernel is asked for both links, which has it look.

        Raises:
            NetworkFailed: it takes too long.
        """
        assert self._bridge is not None, "open() comes first"
        bridge = netlink.interface_name(self._bridge.index)
        for name in (endpoint.tap_name, bridge):
            has_link(name)
        until = time.monotonic() + RUNNING_TIMEOUT_S
        while not netlink.is_running(bridge):
            if time.monotonic() > until:
                raise NetworkFailed(f"bridge {bridge} carries nothing", remedy=f"ip link set {bridge} up")
            time.sleep(RUNNING_POLL_S)
        # The worker holds RTNL until it is done; this waits for that, and changes nothing else.
        route.apply([netlink.add_neighbour(self._bridge.index, endpoint.ip, endpoint.mac)])

    async def close_tap(self, tap: Tap) -> None:
        """Close `tap` in a thread, where it may take the 20 ms of the last to close it."""
        await anyio.to_thread.run_sync(tap.close, limiter=self.limiter)

    async def forget(self, endpoint: Endpoint) -> None:
        """Remove what the host knows of `endpoint` besides its TAP. Idempotent.

        Raises:
            NetworkFailed: the kernel refused.
        """
        await anyio.to_thread.run_sync(self._forget, endpoint, limiter=self.limiter)

    def _forget(self, endpoint: Endpoint) -> None:
        assert self._bridge is not None, "open() comes first"
        try:
            with netlink.RouteSocket() as route:
                route.apply([netlink.delete_neighbour(self._bridge.index, endpoint.ip)])
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise NetworkFailed.because(f"forget {endpoint.ip}", error) from error

    async def wait_gone(
        self, name: str, timeout_s: float = GONE_TIMEOUT_S, *, is_persistent: bool = False
    ) -> None:
        """Return when there is no interface `name`; a persistent TAP is ended when nobody holds it.

        Raises:
            TapHeld: it is still there after `timeout_s`.
            NetworkFailed: the kernel refused to end it.
        """
        gone = asyncio.Event()
        waiting = self._waiting.setdefault(name, set())
        waiting.add(gone)
        try:
            with anyio.move_on_after(timeout_s):
                while is_persistent and netlink.interface_exists(name):
                    if await anyio.to_thread.run_sync(_end_persistent, name, limiter=self.limiter):
                        break
                    await anyio.sleep(HELD_RETRY_S)
                while netlink.interface_exists(name):
                    await gone.wait()
                    gone.clear()
                return
        finally:
            waiting.discard(gone)
            if not waiting:
                self._waiting.pop(name, None)
        raise TapHeld(
            f"{name} is still there after {timeout_s:g} s",
            remedy="end the process that holds it",
            interface=name,
        )

    def _read_removals(self) -> None:
        assert self._removals is not None
        names = self._removals.read()
        for name in tuple(self._waiting) if names is None else names:
            for waiter in self._waiting.get(name, ()):
                waiter.set()


def _end_persistent(name: str) -> bool:
    """Remove a persistent TAP; tells whether nobody held it."""
    try:
        tun.end_persistent(name)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise NetworkFailed.because(f"remove TAP {name}", error) from error
        return False
    return True
