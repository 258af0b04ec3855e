"""Has idle instances sleep: it watches who is connected to each, and knows since when nobody is.

A keeper that ends tells the next one for how long each instance was idle, and that one counts on from there:
the time in which nobody watched does not count. After one that was killed, the time begins anew. So a promise
to stay awake (`hold`) outlives both.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, Protocol

import anyio
import structlog

from ramet.core.auto_standby import AutoStandby, LeftIdle
from ramet.core.errors import Conflict, RametError
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.instance.fleet_types import InstanceView
from ramet.policies.auto_standby import Facts, Status, Verdict, judge
from ramet.policies.due import DueTimes
from ramet.policies.traffic import NOT_WOKEN, TrafficStatus

MAX_CONCURRENT: Final = 16
TRACKING_MODE: Final = "conntrack_events_v4_tcp"
_ASLEEP: Final = frozenset({State.PAUSED, State.STANDBY})

log = structlog.get_logger(__name__)


class InstanceInStandby(Conflict):
    """The instance sleeps, or is about to: it must be restored before anybody connects to it."""

    code = "instance_in_standby"


class Inbound(Protocol):
    """A connection to an instance."""

    @property
    def client(self) -> tuple[IPv4Address, int]: ...

    @property
    def responder(self) -> tuple[IPv4Address, int]: ...


class Observer(Protocol):
    """Knows who is connected to whom: `ramet.net.flows.Flows`."""

    @property
    def error(self) -> str: ...

    def inbound(self, address: IPv4Address) -> Collection[Inbound]: ...

    def outbound(self, address: IPv4Address) -> Collection[object]: ...


class Sleepers(Protocol):
    """The instances: `ramet.instance.fleet.Fleet`."""

    def get(self, ref: str) -> InstanceView: ...

    async def standby(self, ref: str) -> InstanceView: ...


class IdleTimes(Protocol):
    """Keeps what one keeper knows for the next: `ramet.store.idleness.IdleFile`."""

    def take(self) -> Mapping[InstanceId, LeftIdle]: ...

    def leave(self, left: Mapping[InstanceId, LeftIdle]) -> None: ...


@dataclass(frozen=True, slots=True)
class IdleConfig:
    """What else keeps instances awake, and how many are put to sleep at a time."""

    is_busy_in_exec: bool = True
    is_busy_outbound: bool = False
    max_concurrent: int = MAX_CONCURRENT


@dataclass(frozen=True, slots=True)
class IdleStatus:
    """How it stands with an instance. Times are Unix seconds."""

    policy: AutoStandby | None
    verdict: Verdict
    inbound_count: int
    idle_since: float | None
    last_inbound_at: float | None
    hold_until: float | None
    traffic: TrafficStatus = NOT_WOKEN


@dataclass(slots=True)
class _Watched:
    """An instance whose policy is on."""

    record: InstanceRecord
    address: IPv4Address
    inbound_count: int = 0
    idle_since: float | None = None
    last_inbound_at: float | None = None
    hold_until: float | None = None
    is_requested: bool = False
    is_irrevocable: bool = False


class IdleKeeper:
    """Puts instances to sleep that have been idle for as long as their policy says.

    Args:
        address_of: the address of an instance; None: it has no network, or none any more.
        exec_count: how many commands are open in an instance.
        now: Unix seconds.
        traffic_of: how it stands with an instance's wake by traffic.
        times: has what the last keeper left, and gets what this one leaves; None: nobody remembers.
    """

    def __init__(
        self,
        fleet: Sleepers,
        observer: Observer,
        address_of: Callable[[InstanceRecord], IPv4Address | None],
        exec_count: Callable[[InstanceId], int],
        config: IdleConfig = IdleConfig(),
        now: Callable[[], float] = time.time,
        *,
        traffic_of: Callable[[InstanceRecord], TrafficStatus] = lambda record: NOT_WOKEN,
        times: IdleTimes | None = None,
    ) -> None:
        self._fleet, self._observer, self._config, self._now = fleet, observer, config, now
        self._traffic_of, self._times = traffic_of, times
        self._left = dict(times.take()) if times is not None else {}
        self._address_of, self._exec_count = address_of, exec_count
        self._watched: dict[InstanceId, _Watched] = {}
        self._by_address: dict[IPv4Address, InstanceId] = {}
        self._due = DueTimes(now)
        self._places = anyio.Semaphore(config.max_concurrent)

    # What happens

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now. Never fails."""
        policy = record.spec.auto_standby
        if policy is None or not policy.is_enabled or record.is_deleting:
            self._forget(record.id)
            return
        address = self._address_of(record)
        if address is None:
            self._forget(record.id)
            return
        watched = self._watched.get(record.id)
        if watched is None:
            watched = self._watched[record.id] = _Watched(record, address)
            self._by_address[address] = record.id
        watched.record = record
        if record.state is not State.RUNNING:
            watched.idle_since = watched.hold_until = None
        self._look(watched)

    def connections_changed(self, address: IPv4Address) -> None:
        """Take note that an address has others connected to it, or is to others, than before."""
        instance = self._by_address.get(address)
        if instance is not None:
            self._look(self._watched[instance], is_news=True)

    def all_changed(self) -> None:
        """Take note that nobody knows who was connected until now: everybody may have been busy."""
        for watched in self._watched.values():
            watched.idle_since = None
            self._look(watched)

    def execs_changed(self, instance: InstanceId) -> None:
        """Take note that a command was opened in an instance, or has ended."""
        watched = self._watched.get(instance)
        if watched is not None:
            self._look(watched)

    async def run(self, found: Iterable[InstanceRecord] = ()) -> None:
        """Put to sleep what is due, until cancelled. `found`: the instances there are already."""
        for record in found:
            self.see(record)
        try:
            async with anyio.create_task_group() as group:
                while True:
                    watched = self._watched.get(await self._due.next())
                    if watched is not None:
                        self._heed_clock(watched)
                    if watched is not None and self._plan(watched) is Status.READY:
                        watched.is_requested = True
                        group.start_soon(self._suspend, watched)
        finally:
            if self._times is not None:
                self._times.leave(self._leaving())

    # What is asked

    def status(self, ref: str) -> IdleStatus:
        """Say how it stands with an instance.

        Raises:
            InstanceNotFound, InstanceAmbiguous
        """
        record = self._fleet.get(ref).record
        watched, traffic = self._watched.get(record.id), self._traffic_of(record)
        if watched is None:
            facts = Facts(
                is_running=record.state is State.RUNNING,
                has_network=record.spec.has_network,
                is_observed=not self._observer.error,
                is_busy=False,
                idle_since=None,
                hold_until=None,
                is_requested=False,
            )
            verdict = judge(record.spec.auto_standby, facts, self._now())
            return IdleStatus(record.spec.auto_standby, verdict, 0, None, None, None, traffic)
        return IdleStatus(
            record.spec.auto_standby,
            self._judge(watched),
            watched.inbound_count,
            watched.idle_since,
            watched.last_inbound_at,
            watched.hold_until,
            traffic,
        )

    def hold(self, ref: str) -> IdleStatus:
        """Promise that an instance is awake for as long as its policy lets it be idle, from now on.

        Of one without such a policy nothing needs to be promised.

        Raises:
            InstanceNotFound, InstanceAmbiguous
            InstanceInStandby: it sleeps, or is about to.
        """
        record = self._fleet.get(ref).record
        watched = self._watched.get(record.id)
        if record.state in _ASLEEP or (watched is not None and watched.is_irrevocable):
            raise InstanceInStandby(
                f"instance {record.name} is in standby, or on its way there",
                remedy="restore it, then connect",
                state=record.state,
            )
        if watched is not None and record.state is State.RUNNING:
            policy = record.spec.auto_standby
            assert policy is not None, "that is why it is watched"
            watched.hold_until = self._now() + policy.idle_timeout_s
            watched.is_requested = False  # Whoever waits for a place to put it to sleep finds it held.
            self._look(watched)
        return self.status(ref)

    # How it goes

    def _leaving(self) -> dict[InstanceId, LeftIdle]:
        now = self._now()
        return {
            instance: LeftIdle(max(0.0, now - watched.idle_since), watched.hold_until)
            for instance, watched in self._watched.items()
            if watched.idle_since is not None
        }

    def _forget(self, instance: InstanceId) -> None:
        watched = self._watched.pop(instance, None)
        if watched is not None:
            self._by_address.pop(watched.address, None)

    def _look(self, watched: _Watched, *, is_news: bool = False) -> None:
        """Find out whether an instance is busy, and when it is due."""
        policy, now = watched.record.spec.auto_standby, self._now()
        assert policy is not None, "that is why it is watched"
        before = watched.inbound_count
        watched.inbound_count = sum(
            policy.counts(one.client[0], one.responder[1]) for one in self._observer.inbound(watched.address)
        )
        if watched.inbound_count or (is_news and before):
            watched.last_inbound_at = now
        left = None if self._observer.error else self._left.pop(watched.record.id, None)
        if watched.record.state is not State.RUNNING or self._is_busy(watched):
            watched.idle_since = None
        elif left is not None:
            watched.idle_since, watched.hold_until = now - left.idle_s, watched.hold_until or left.hold_until
        elif watched.idle_since is None:
            watched.idle_since = now
        if self._plan(watched) is Status.READY:
            self._due.put(now, watched.record.id)

    def _plan(self, watched: _Watched) -> Status:
        """Return how it stands with an instance; one whose time runs is looked at when it is over."""
        verdict = self._judge(watched)
        if verdict.status is Status.IDLE_COUNTDOWN and verdict.next_standby_at is not None:
            self._due.put(verdict.next_standby_at, watched.record.id)
        return verdict.status

    def _heed_clock(self, watched: _Watched) -> None:
        """Have no time of an instance be further ahead than its policy goes, as after a clock is set back."""
        policy, now = watched.record.spec.auto_standby, self._now()
        assert policy is not None, "that is why it is watched"
        if watched.idle_since is not None:
            watched.idle_since = min(watched.idle_since, now)
        if watched.hold_until is not None:
            watched.hold_until = min(watched.hold_until, now + policy.idle_timeout_s)

    def _is_busy(self, watched: _Watched) -> bool:
        return (
            watched.inbound_count > 0
            or (self._config.is_busy_in_exec and self._exec_count(watched.record.id) > 0)
            or (self._config.is_busy_outbound and bool(self._observer.outbound(watched.address)))
        )

    def _judge(self, watched: _Watched) -> Verdict:
        facts = Facts(
            is_running=watched.record.state is State.RUNNING,
            has_network=True,
            is_observed=not self._observer.error,
            is_busy=watched.idle_since is None,
            idle_since=watched.idle_since,
            hold_until=watched.hold_until,
            is_requested=watched.is_requested,
        )
        return judge(watched.record.spec.auto_standby, facts, self._now())

    async def _suspend(self, watched: _Watched) -> None:
        instance = watched.record.id
        async with self._places:
            was_requested, watched.is_requested = watched.is_requested, False
            self._look(watched)
            if not was_requested or self._judge(watched).status is not Status.READY:
                return
            watched.is_requested = watched.is_irrevocable = True
            try:
                await self._fleet.standby(instance)
                log.info("idle_instance_asleep", instance=instance)
            except RametError as error:
                log.warning("idle_instance_awake", instance=instance, error=str(error))
                watched.idle_since = None  # It is tried again when it has been idle for as long once more.
            finally:
                watched.is_requested = watched.is_irrevocable = False
            if instance in self._watched:
                self._look(watched)
