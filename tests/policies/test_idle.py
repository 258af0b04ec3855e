"""Who is put to sleep when, by a keeper whose observer says what it is told to."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from ramet.core.auto_standby import AutoStandby, LeftIdle
from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.instance.fleet_types import InstanceNotFound, InstanceView
from ramet.policies.auto_standby import Reason, Status
from ramet.policies.idle import IdleConfig, IdleKeeper, InstanceInStandby
from tests.waiting import until

pytestmark = pytest.mark.anyio
SOON = AutoStandby(True, 0.02)
LATER = AutoStandby(True, 3600.0)
CLIENT = IPv4Address("192.0.2.7")


@dataclass(frozen=True)
class Connection:
    client: tuple[IPv4Address, int] = (CLIENT, 40_000)
    responder: tuple[IPv4Address, int] = (IPv4Address("10.100.0.2"), 80)


@dataclass
class Observer:
    error: str = ""
    connections: dict[IPv4Address, list[Connection]] = field(default_factory=dict)
    others: dict[IPv4Address, list[Connection]] = field(default_factory=dict)

    def inbound(self, address: IPv4Address) -> list[Connection]:
        return self.connections.get(address, [])

    def outbound(self, address: IPv4Address) -> list[Connection]:
        return self.others.get(address, [])


class House:
    """Instances, and the keeper that puts them to sleep."""

    def __init__(self, config: IdleConfig) -> None:
        self.records: dict[str, InstanceRecord] = {}
        self.observer = Observer()
        self.execs = Counter[InstanceId]()
        self.asked: list[str] = []
        self.slept: list[str] = []
        self.failure: Broken | None = None
        self.gate: anyio.Event | None = None
        self.keeper = IdleKeeper(self, self.observer, self.address, lambda one: self.execs[one], config)

    def address(self, record: InstanceRecord) -> IPv4Address | None:
        slot = record.identity.slot
        return None if slot is None else IPv4Address("10.100.0.0") + slot

    def get(self, ref: str) -> InstanceView:
        if ref not in self.records:
            raise InstanceNotFound(ref)
        return cast(InstanceView, _View(self.records[ref]))

    async def standby(self, ref: str) -> InstanceView:
        self.asked.append(ref)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.slept.append(ref)
        self.put(ref, state=State.STANDBY)
        return self.get(ref)

    def put(self, name: str, **changes: Any) -> InstanceRecord:
        record = self.records.get(name)
        if record is None:
            slot = changes.pop("slot", len(self.records) + 2)
            policy = changes.pop("policy", SOON)
            spec = InstanceSpec("i", "d", "fake", 1, 1, 1, auto_standby=policy, has_network=slot is not None)
            identity = InstanceIdentity(InstanceId(name), name, slot, "0" * 32, 0.0)
            record = InstanceRecord(spec, identity, State.RUNNING)
        record = self.records[name] = replace(record, **changes)
        self.keeper.see(record)
        return record

    def connect(self, name: str, *connections: Connection) -> None:
        address = self.address(self.records[name])
        assert address is not None
        self.observer.connections[address] = list(connections)
        self.keeper.connections_changed(address)

    def status(self, name: str) -> Status:
        return self.keeper.status(name).verdict.status


@dataclass
class _View:
    record: InstanceRecord


@asynccontextmanager
async def house(config: IdleConfig | None = None) -> AsyncIterator[House]:
    there = House(config or IdleConfig())
    async with anyio.create_task_group() as group:
        group.start_soon(there.keeper.run)
        yield there
        group.cancel_scope.cancel()


@dataclass
class Times:
    kept: dict[InstanceId, LeftIdle]

    def take(self) -> dict[InstanceId, LeftIdle]:
        return self.kept

    def leave(self, left: Mapping[InstanceId, LeftIdle]) -> None:
        self.kept = dict(left)


async def test_what_a_keeper_leaves_counts_for_the_next_as_soon_as_connections_are_known() -> None:
    now = 1_000.0
    times = Times({InstanceId(name): LeftIdle(600.0) for name in ("busy", "asleep", "gone")})
    times.kept[InstanceId("idle")] = LeftIdle(600.0, 5_000.0)
    there = House(IdleConfig())
    there.observer.error = "not looked at yet"
    there.keeper = IdleKeeper(
        there, there.observer, there.address, lambda one: 0, now=lambda: now, times=times
    )
    for name in ("idle", "busy", "new"):
        there.put(name, policy=LATER)
    there.put("asleep", policy=LATER, state=State.STANDBY)
    there.observer.error = ""
    there.connect("busy", Connection())
    there.keeper.all_changed()
    there.put("asleep", state=State.RUNNING)
    since = {name: there.keeper.status(name).idle_since for name in ("idle", "busy", "new", "asleep")}
    assert since == {"idle": 400.0, "busy": None, "new": 1_000.0, "asleep": 1_000.0}
    assert there.keeper.status("idle").verdict.next_standby_at == 5_000.0

    now = 1_001.0
    async with anyio.create_task_group() as group:
        group.start_soon(there.keeper.run)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    fresh = {InstanceId(name): LeftIdle(1.0) for name in ("new", "asleep")}
    assert times.kept == {InstanceId("idle"): LeftIdle(601.0, 5_000.0), **fresh}

    # It counts once: whoever comes and goes begins anew.
    for connections in ([Connection()], []):
        there.connect("idle", *connections)
        there.connect("busy", *connections)
    assert there.keeper.status("idle").idle_since == there.keeper.status("busy").idle_since == 1_001.0


async def test_who_is_idle_for_long_enough_sleeps_and_others_do_not() -> None:
    async with house() as there:
        there.put("busy")
        there.connect("busy", Connection())
        there.put("later", policy=LATER)
        there.put("none", policy=None)
        there.put("off", policy=AutoStandby(False, 0.02))
        there.put("alone", slot=None)
        there.put("idle")
        await until(lambda: there.slept == ["idle"])
        assert there.status("busy") is Status.ACTIVE
        assert there.status("later") is Status.IDLE_COUNTDOWN
        assert there.keeper.status("none").verdict.reason is Reason.POLICY_MISSING
        assert there.keeper.status("off").verdict.reason is Reason.POLICY_DISABLED
        assert there.keeper.status("alone").verdict.reason is Reason.NETWORK_DISABLED
        assert there.keeper.status("idle").verdict.reason is Reason.NOT_RUNNING


async def test_the_countdown_begins_when_the_last_connection_ends() -> None:
    async with house() as there:
        there.put("web")
        there.connect("web", Connection(), Connection((CLIENT, 40_001)))
        there.connect("web", Connection())
        found = there.keeper.status("web")
        assert (found.inbound_count, found.idle_since) == (1, None)
        there.connect("web")
        found = there.keeper.status("web")
        assert found.inbound_count == 0
        assert found.idle_since is not None
        assert found.last_inbound_at is not None
        await until(lambda: there.slept == ["web"])


async def test_ignored_connections_keep_nobody_awake() -> None:
    async with house() as there:
        there.put("web", policy=replace(SOON, ignored_ports=(80,)))
        there.connect("web", Connection())
        await until(lambda: there.slept == ["web"])


async def test_one_that_wakes_is_idle_from_then_on() -> None:
    async with house() as there:
        there.put("web")
        await until(lambda: there.slept == ["web"])
        there.put("web", state=State.RUNNING)
        await until(lambda: there.slept == ["web", "web"])


@pytest.mark.parametrize("counts", [True, False])
async def test_an_open_exec_counts_where_that_is_set(counts: bool) -> None:
    async with house(IdleConfig(is_busy_in_exec=counts)) as there:
        there.execs[InstanceId("web")] = 1
        there.put("web")
        there.put("other")
        await until(lambda: "other" in there.slept)
        assert (there.status("web") is Status.ACTIVE) == counts
        there.execs.clear()
        there.keeper.execs_changed(InstanceId("web"))
        await until(lambda: "web" in there.slept)


@pytest.mark.parametrize("counts", [True, False])
async def test_its_own_connections_count_where_that_is_set(counts: bool) -> None:
    async with house(IdleConfig(is_busy_outbound=counts)) as there:
        there.put("web", policy=LATER)
        address = there.address(there.records["web"])
        assert address is not None
        there.observer.others[address] = [Connection()]
        there.keeper.connections_changed(address)
        assert (there.status("web") is Status.ACTIVE) == counts


async def test_a_hold_is_a_promise_from_now_on() -> None:
    async with house() as there:
        there.put("web", policy=LATER)
        before = there.keeper.status("web").verdict.next_standby_at
        found = there.keeper.hold("web")
        assert before is not None
        assert found.hold_until is not None
        assert found.verdict.next_standby_at == found.hold_until >= before
        there.put("none", policy=None)
        assert there.keeper.hold("none").hold_until is None
        with pytest.raises(InstanceNotFound):
            there.keeper.hold("nobody")


async def test_a_hold_cancels_one_that_waits_for_a_place_and_refuses_one_that_is_on_its_way() -> None:
    async with house(IdleConfig(max_concurrent=1)) as there:
        there.gate = anyio.Event()
        there.put("first")
        await until(lambda: there.asked == ["first"])
        assert there.status("first") is Status.REQUESTED
        with pytest.raises(InstanceInStandby):
            there.keeper.hold("first")
        there.put("second", policy=replace(SOON, idle_timeout_s=0.3))
        await until(lambda: there.status("second") is Status.REQUESTED)
        held = there.keeper.hold("second").hold_until
        there.gate.set()
        await until(lambda: there.slept == ["first"])
        assert there.status("second") is Status.IDLE_COUNTDOWN
        assert there.keeper.status("second").hold_until == held
        with pytest.raises(InstanceInStandby):
            there.keeper.hold("first")


async def test_who_is_connected_to_while_he_waits_for_a_place_is_left_awake() -> None:
    async with house(IdleConfig(max_concurrent=1)) as there:
        there.gate = anyio.Event()
        there.put("first")
        await until(lambda: there.status("first") is Status.REQUESTED)
        there.put("second")
        await until(lambda: there.status("second") is Status.REQUESTED)
        there.connect("second", Connection())
        there.gate.set()
        await until(lambda: there.slept == ["first"] and there.status("second") is Status.ACTIVE)


async def test_a_standby_that_fails_is_tried_again() -> None:
    async with house() as there:
        there.failure = Broken("no room")
        there.put("web")
        await until(lambda: there.status("web") is Status.REQUESTED)
        await until(lambda: there.status("web") is not Status.REQUESTED)
        there.failure = None
        await until(lambda: there.slept == ["web"])


async def test_nobody_sleeps_while_connections_are_not_known() -> None:
    async with house() as there:
        there.observer.error = "blind"
        there.put("web")
        assert there.status("web") is Status.ERROR
        there.observer.error = ""
        there.keeper.all_changed()
        await until(lambda: there.slept == ["web"])


async def test_one_that_is_gone_or_changes_its_mind_is_forgotten() -> None:
    async with house() as there:
        there.put("web", policy=LATER)
        there.put("web", is_deleting=True)
        there.put("other", policy=LATER)
        record = there.records["other"]
        there.put("other", spec=replace(record.spec, auto_standby=None))
        assert there.status("other") is Status.DISABLED
        assert there.keeper.status("web").verdict.next_standby_at is None


async def test_one_whose_address_is_given_back_is_forgotten_without_a_word() -> None:
    async with house() as there:
        record = there.put("web", policy=LATER)
        identity = replace(record.identity, slot=None)
        there.put("web", identity=identity, state=State.UNKNOWN)
        assert there.keeper.status("web").verdict.status is not Status.IDLE_COUNTDOWN
        there.keeper.connections_changed(IPv4Address("10.100.0.2"))
