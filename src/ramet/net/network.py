"""The guests' network as the rest of the daemon sees it: endpoints reserved, attached and released.

`reserve` is arithmetic. `attach` admits the endpoint's identity, then makes its TAP, limited; `detach` and
`release` wait until the TAP is gone, then remove its IFB and revoke the admission. In that order no TAP is
ever there unfiltered or without its limits, and no slot is given away while its TAP may still speak. What
could not be taken down stays held and visible, for the next `release` or `sweep`.

`arm` makes the TAP of one that sleeps, and waits there for the first packet of a connection. The `attach` of
its wake gets this very TAP, and `deliver` what has come to it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import anyio
import anyio.to_thread

from ramet.core.errors import Conflict
from ramet.core.ids import InstanceId
from ramet.linux.traffic import read_traffic
from ramet.net.armed import Armed, send
from ramet.net.bridge import Bridge, BridgeConfig, BridgeFacts
from ramet.net.errors import TapHeld
from ramet.net.firewall import Firewall, FirewallStatistics
from ramet.net.flows import Flows
from ramet.net.rates import UNLIMITED, RateLimits
from ramet.net.shaping import ShapingQueue, ShapingStatistics
from ramet.net.slots import Endpoint, SlotPool
from ramet.net.sweep import Swept, sweep
from ramet.net.syn import NOTHING_IGNORED, Ignored
from ramet.net.tap_shaping import TapShaping
from ramet.net.taps import GONE_TIMEOUT_S, Tap, Taps
from ramet.telemetry.timings import phase

TEARDOWN_TIMEOUT_S: Final = (
    30.0  # Over the sum of its parts: TAP gone, one nft transaction and its repetition.
)


class AlreadyAttached(Conflict):
    """The instance has a TAP."""

    code = "already_attached"
    remedy_default = "stop it, then start it again"


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What every guest of this network is told, besides its own MAC and address."""

    gateway: IPv4Address
    prefix_length: int
    dns: tuple[IPv4Address, ...]
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class NetworkStatistics:
    """How full the network is. `stuck_count` endpoints failed to be taken down and stay held."""

    held_count: int
    free_count: int
    attached_count: int
    stuck_count: int
    uplink: str | None
    firewall: FirewallStatistics
    shaping: ShapingStatistics


class Network:
    """One bridge, its firewall and its endpoints. `open` before all else, `close` at the end.

    Closing leaves bridge, rules and TAPs as they are: guests outlive the daemon.
    """

    def __init__(self, config: BridgeConfig) -> None:
        self.config = config
        self._pool = SlotPool(config.subnet, config.tap_prefix)
        self._bridge = Bridge(config)
        self._firewall = Firewall(config)
        self._taps = Taps()
        self._tap_shaping = TapShaping(self._taps.limiter)
        self._shaping = ShapingQueue(self._tap_shaping)
        self.flows = Flows(config.subnet)
        """Who is connected to whom; for whoever wants to know it to run."""
        self._facts: BridgeFacts | None = None
        self._told: NetworkFacts | None = None
        self._attached: dict[InstanceId, Endpoint] = {}
        self._open_taps: dict[InstanceId, Tap] = {}
        self._armed: dict[InstanceId, Armed] = {}
        self._kept_frames: dict[InstanceId, Sequence[bytes]] = {}
        """What came to armed TAPs that their VMMs cannot take over, until it is delivered."""
        self._persistent: set[InstanceId] = set()
        """Whose TAP is to be ended, since it does not go with its VMM."""
        self._stuck: set[InstanceId] = set()
        self._turns: defaultdict[InstanceId, anyio.Lock] = defaultdict(anyio.Lock)

    async def open(self) -> None:
        """Make sure of the bridge and the rules. Guests on an existing bridge go on undisturbed.

        Raises:
            SubnetClash, BridgeClash, Invalid, NetworkFailed: see `Bridge.ensure`.
            FirewallFailed: see `Firewall.open`.
        """
        self._facts = await self._bridge.ensure()
        gateway = self.config.gateway
        self._told = NetworkFacts(
            gateway.ip, gateway.network.prefixlen, self.config.dns, self._facts.mtu_bytes
        )
        await self._firewall.open(self._facts.uplink)
        self._taps.open(self._facts)
        self._tap_shaping.open(self._facts)

    async def run(self) -> None:
        """See to the limits of the guests that were adopted, and to those that failed, until cancelled."""
        await self._shaping.run()

    async def close(self) -> None:
        """Let go of everything of ours that is open; the network stays. Idempotent."""
        self._taps.close()
        async with anyio.create_task_group() as group:
            for armed in self._armed.values():
                armed.stop()
                group.start_soon(anyio.to_thread.run_sync, armed.close)
            self._armed.clear()
            for tap in self._open_taps.values():
                group.start_soon(self._taps.close_tap, tap)
        self._open_taps.clear()
        await self._firewall.close()

    @property
    def facts(self) -> NetworkFacts:
        """What guests are told. After `open`."""
        assert self._told is not None, "open() comes first"
        return self._told

    def reserve(self, instance: InstanceId) -> Endpoint:
        """Return the endpoint `instance` holds, or hold one for it. Arithmetic only, microseconds.

        Raises:
            SlotsExhausted: there is none.
        """
        return self._pool.reserve_nowait(instance)

    def give_back(self, instance: InstanceId) -> None:
        """Hold no more what was only reserved: there never was a TAP. Harmless if it holds nothing."""
        assert instance not in self._attached, "what was attached must be released"
        if instance in self._pool:
            self._pool.release(instance)

    def adopt(
        self,
        instance: InstanceId,
        slot: int,
        *,
        is_attached: bool = True,
        limits: RateLimits = UNLIMITED,
        by_name: bool = False,
    ) -> Endpoint:
        """Hold `slot` for `instance`, as its stored record says. For startup.

        With `is_attached` it may have a TAP: its admission is kept, and its limits are seen to by `run`;
        without, it has neither. `by_name`: as it was attached.

        Raises:
            SlotHeld: another instance has it, or the subnet does not.
        """
        endpoint = self._pool.adopt(instance, slot)
        if is_attached:
            self._attached[instance] = endpoint
            if by_name:
                self._persistent.add(instance)
            self._shaping.put_nowait(endpoint, limits.or_else(self.config.default_limits))
        return endpoint

    def endpoint(self, instance: InstanceId) -> Endpoint:
        """Return what `instance` holds.

        Raises:
            NoEndpoint: it holds nothing.
        """
        return self._pool.endpoint(instance)

    async def attach(
        self, instance: InstanceId, limits: RateLimits = UNLIMITED, *, by_name: bool = False
    ) -> Tap:
        """Make the TAP of `instance`, filtered and limited from its first moment.

        Pass `fd` to the VMM, then close it; or, `by_name`, have the VMM open the TAP, which outlives it then.
        Where `limits` has none, the network's default counts. One that is armed is handed over, and is
        deaf until `deliver`; `by_name` it is made anew.

        If it fails, the slot is still held and there is no TAP.

        Raises:
            NoEndpoint: `reserve` or `adopt` comes first.
            AlreadyAttached: we hold a TAP of this instance.
            TapHeld: an interface of that name is there, most likely an earlier VMM's.
            IfbHeld: an interface that is no IFB has the name of its IFB.
            NetworkFailed, FirewallFailed: the host refused.
        """
        self._pool.endpoint(instance)
        async with self._turns[instance]:
            armed = self._armed.get(instance)
            if armed is not None:
                armed.stop()
                if not by_name:
                    return armed.tap
                frames = armed.read()
                await self._detach(instance, GONE_TIMEOUT_S)
                self._kept_frames[instance] = frames
            return await self._attach(instance, limits.or_else(self.config.default_limits), by_name=by_name)

    async def deliver(self, instance: InstanceId) -> None:
        """Have a guest be reached that woke on a TAP that was armed, first by those who have asked already.

        When it is itself. Harmless if it was not armed.

        Raises:
            NetworkFailed: the kernel refused.
        """
        armed, frames = self._armed.pop(instance, None), self._kept_frames.pop(instance, ())
        if armed is not None:
            await anyio.to_thread.run_sync(armed.hand_over, limiter=self._taps.limiter)
        elif frames:
            name = self._pool.endpoint(instance).tap_name
            await anyio.to_thread.run_sync(send, name, frames, limiter=self._taps.limiter)

    async def arm(
        self,
        instance: InstanceId,
        on_syn: Callable[[InstanceId], None],
        limits: RateLimits = UNLIMITED,
        ignored: Ignored = NOTHING_IGNORED,
    ) -> None:
        """Have `on_syn` be called, once, when somebody asks `instance`, which has no VMM, for a connection.

        Armed again, it is to be called again; who has asked until now is forgotten.

        Raises:
            NoEndpoint, AlreadyAttached, TapHeld, IfbHeld, NetworkFailed, FirewallFailed: see `attach`; it is
                not armed.
        """
        endpoint = self._pool.endpoint(instance)
        async with self._turns[instance]:
            armed = self._armed.get(instance)
            if armed is None:
                limits = limits.or_else(self.config.default_limits)
                tap = await self._attach(instance, limits, is_deaf=True)
                armed = self._armed[instance] = Armed(endpoint, tap)
            armed.stop()
            try:
                await anyio.to_thread.run_sync(armed.renew, ignored, limiter=self._taps.limiter)
            except BaseException:
                await self._detach(instance, GONE_TIMEOUT_S)
                raise
            armed.wait(lambda: on_syn(instance))

    async def disarm(self, instance: InstanceId) -> None:
        """Take down what `arm` made, if it is still there.

        Raises:
            TapHeld, NetworkFailed, FirewallFailed: see `detach`.
        """
        async with self._turns[instance]:
            if instance in self._armed:
                await self._detach(instance, GONE_TIMEOUT_S)

    def is_armed(self, instance: InstanceId) -> bool:
        """Tell whether `instance` has a TAP that waits for a wake."""
        return instance in self._armed

    def is_waiting(self, instance: InstanceId) -> bool:
        """Tell whether the next who asks `instance` for a connection is noticed."""
        armed = self._armed.get(instance)
        return armed is not None and armed.is_waiting

    async def _attach(
        self, instance: InstanceId, limits: RateLimits, *, by_name: bool = False, is_deaf: bool = False
    ) -> Tap:
        endpoint = self._pool.endpoint(instance)
        held = self._open_taps.get(instance)
        if held is not None and held.is_open:
            raise AlreadyAttached(f"instance {instance} has TAP {held.name} already")
        self._attached[instance] = endpoint
        try:
            with phase("network_admit"):
                await self._firewall.admit([endpoint])
            self._shaping.hold(endpoint, limits)
            with phase("network_tap"):
                tap = await self._taps.open_tap(endpoint, limits, by_name=by_name, is_deaf=is_deaf)
        except TapHeld:
            raise  # Somebody's TAP is there: its filter stays too.
        except BaseException:
            self._stuck.add(instance)
            with anyio.CancelScope(shield=True):
                await self._dismiss(instance)
            self._stuck.discard(instance)
            raise
        if by_name:
            self._persistent.add(instance)
        self._open_taps[instance] = tap
        self._stuck.discard(instance)
        return tap

    async def detach(self, instance: InstanceId, timeout_s: float = GONE_TIMEOUT_S) -> None:
        """Have the TAP of `instance` be gone and revoke its admission; the slot stays held.

        For standby. Its VMM must have ended. Idempotent and not stopped by cancellation.

        Raises:
            NoEndpoint: it holds no slot.
            TapHeld: the TAP is still there after `timeout_s`; all else is as before.
            NetworkFailed, FirewallFailed: the host refused; all else is as before.
        """
        self._pool.endpoint(instance)
        async with self._turns[instance]:
            await self._detach(instance, timeout_s)

    async def _detach(self, instance: InstanceId, timeout_s: float) -> None:
        endpoint = self._pool.endpoint(instance)
        if instance not in self._attached:
            return
        self._stuck.add(instance)
        with anyio.fail_after(timeout_s + TEARDOWN_TIMEOUT_S, shield=True):
            self._kept_frames.pop(instance, None)
            armed = self._armed.pop(instance, None)
            if armed is not None:
                armed.stop()
                await anyio.to_thread.run_sync(armed.close, limiter=self._taps.limiter)
            tap = self._open_taps.pop(instance, None)
            if tap is not None and tap.is_open:
                await self._taps.close_tap(tap)
            is_persistent = instance in self._persistent
            await self._taps.wait_gone(endpoint.tap_name, timeout_s, is_persistent=is_persistent)
            self._persistent.discard(instance)
            await self._dismiss(instance)
        self._stuck.discard(instance)

    async def release(self, instance: InstanceId, timeout_s: float = GONE_TIMEOUT_S) -> None:
        """`detach`, then free the slot. An instance that holds none is released already.

        Raises:
            TapHeld, NetworkFailed, FirewallFailed: see `detach`; the slot stays held, `statistics` counts it.
        """
        async with self._turns[instance]:
            if instance in self._pool:
                await self._detach(instance, timeout_s)
                self._pool.release(instance)
        self._turns.pop(instance, None)

    async def sweep(self) -> Swept:
        """Remove what is on our bridge and belongs to no held endpoint. After all were adopted.

        Raises:
            NetworkFailed, FirewallFailed: see `ramet.net.sweep.sweep`.
        """
        return await sweep(self.config, self._firewall, self._pool.endpoints, self._attached.values)

    async def foreign_drops(self) -> tuple[str, ...]:
        """Return what of others' firewalls may stop our guests, see `Firewall.foreign_drops`.

        Raises:
            FirewallFailed: nft failed.
        """
        return await self._firewall.foreign_drops()

    def degraded(self, instance: InstanceId) -> str | None:
        """Return why the traffic of `instance` is not limited as asked, None if it is."""
        endpoint = self._attached.get(instance)
        return None if endpoint is None else self._shaping.degraded(endpoint)

    def traffic(self, instance: InstanceId) -> tuple[int, int]:
        """Return the bytes that came to `instance` and from it since its TAP was made; 0 without one."""
        endpoint = self._attached.get(instance)
        if endpoint is None:
            return 0, 0
        from_guest, to_guest = read_traffic(endpoint.tap_name)
        return to_guest, from_guest

    def statistics(self) -> NetworkStatistics:
        """Return how full the network is."""
        return NetworkStatistics(
            held_count=self._pool.held_count,
            free_count=self._pool.free_count,
            attached_count=len(self._attached),
            stuck_count=len(self._stuck),
            uplink=self._facts.uplink if self._facts else None,
            firewall=self._firewall.statistics(),
            shaping=self._shaping.statistics(),
        )

    async def _dismiss(self, instance: InstanceId) -> None:
        """Revoke and forget an endpoint whose TAP is gone."""
        endpoint = self._pool.endpoint(instance)
        await self._taps.forget(endpoint)
        await self._shaping.remove(endpoint)
        await self._firewall.revoke([endpoint])
        self._attached.pop(instance, None)
