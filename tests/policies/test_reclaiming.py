"""Memory is taken back for a while, and given again: in time, after a restart, to whoever wakes with less."""

import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.core.errors import Broken, Unsupported
from ramet.core.guest_memory import MIB, GuestMemory, HostMemory, ReclaimHold
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.policies.reclaim import PressureState, ReclaimConfig
from ramet.policies.reclaiming import ReclaimDisabled, Reclaimed, ReclaimKeeper
from tests.api.stand_in_reclaims import MemoryHold

pytestmark = pytest.mark.anyio

GIB = 1024 * MIB


def record(name: str, state: State = State.RUNNING) -> InstanceRecord:
    spec = InstanceSpec("i", "d", "fake", 1, GIB, 1)
    return InstanceRecord(spec, InstanceIdentity(InstanceId(name), name, None, "0" * 32, 0.0), state)


class Host:
    """Guests of 1 GiB, of which each can spare half, and a clock; it outlives its keepers."""

    def __init__(self, *names: str) -> None:
        self.now, self.available = 1000.0, 6 * GIB
        self.hold = MemoryHold()
        self.balloons = {InstanceId(name): 0 for name in names}
        self.failing: dict[str, Exception] = {}
        self.looks: list[set[InstanceId] | None] = []

    async def look(self, instances: Iterable[InstanceId] | None = None) -> Sequence[GuestMemory]:
        wanted = None if instances is None else set(instances)
        self.looks.append(wanted)
        return [
            GuestMemory(name, name, "fake", GIB, balloon)
            for name, balloon in self.balloons.items()
            if wanted is None or name in wanted
        ]

    async def ask(self, instance: InstanceId, balloon_bytes: int) -> None:
        await anyio.lowlevel.checkpoint()
        if instance in self.failing:
            raise self.failing[instance]
        self.balloons[instance] = balloon_bytes

    @asynccontextmanager
    async def daemon(self, config: ReclaimConfig = ReclaimConfig()) -> AsyncIterator[ReclaimKeeper]:  # noqa: B008
        memory = lambda: HostMemory(8 * GIB, self.available)  # noqa: E731
        keeper = ReclaimKeeper(self, self.hold, memory, config, lambda: self.now, retry_s=0.001)
        async with anyio.create_task_group() as group:
            group.start_soon(keeper.run, [record(name) for name in self.balloons])
            await settle()
            yield keeper
            group.cancel_scope.cancel()

    async def turn(self, keeper: ReclaimKeeper, at: float) -> None:
        self.now = at
        keeper._is_news.set()
        await settle()

    @property
    def given_mib(self) -> list[int]:
        return [balloon // MIB for balloon in self.balloons.values()]


async def settle() -> None:
    """Let everybody do what there is to do now."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


def statuses(found: Reclaimed) -> list[str]:
    return [one.status.value for one in found.taken]


async def test_memory_is_held_for_as_long_as_asked_and_then_given_back() -> None:
    host = Host("a", "b")
    async with host.daemon() as keeper:
        found = await keeper.reclaim(400 * MIB, 60.0, reason="why")
        assert host.given_mib == [200, 200]
        assert (found.planned_bytes, found.applied_bytes) == (400 * MIB, 400 * MIB)
        assert (statuses(found), found.hold_until) == (["applied", "applied"], 1060.0)
        assert host.hold.hold == ReclaimHold(1060.0, 400 * MIB, "why")
        await host.turn(keeper, 1059.0)
        assert host.given_mib == [200, 200]
        await host.turn(keeper, 1060.0)
        assert host.given_mib == [0, 0]
        count = len(host.looks)
        await host.turn(keeper, 2000.0)
        assert len(host.looks) == count, "there is nobody to look at any more"


async def test_a_dry_run_changes_nothing() -> None:
    host = Host("a")
    async with host.daemon() as keeper:
        found = await keeper.reclaim(100 * MIB, 60.0, is_dry_run=True)
        assert (statuses(found), found.planned_bytes, found.applied_bytes) == (["planned"], 100 * MIB, 0)
        assert (found.hold_until, host.hold.hold, host.given_mib) == (None, None, [0])
        await keeper.reclaim(100 * MIB, 60.0)
        again = await keeper.reclaim(300 * MIB, 5.0, is_dry_run=True)
        assert (again.hold_until, again.applied_bytes) == (1060.0, 100 * MIB)


async def test_a_request_takes_the_place_of_the_one_before() -> None:
    host = Host("a")
    async with host.daemon() as keeper:
        await keeper.reclaim(400 * MIB, 60.0)
        same = await keeper.reclaim(400 * MIB, 600.0)
        assert (statuses(same), same.applied_bytes, same.hold_until) == (["unchanged"], 400 * MIB, 1600.0)
        await host.turn(keeper, 1100.0)
        assert host.given_mib == [400]
        less = await keeper.reclaim(100 * MIB, 60.0)
        assert (host.given_mib, less.hold_until) == ([100], 1160.0)
        none = await keeper.reclaim(0, 60.0)
        assert (host.given_mib, none.hold_until, none.planned_bytes) == ([0], None, 0)


async def test_a_daemon_that_starts_holds_on_and_gives_back_in_time() -> None:
    host = Host("a")
    async with host.daemon() as keeper:
        await keeper.reclaim(400 * MIB, 60.0)
    async with host.daemon() as keeper:
        assert host.given_mib == [400]
        await host.turn(keeper, 1060.0)
        assert host.given_mib == [0]


async def test_what_was_due_without_a_daemon_is_given_back_by_the_next() -> None:
    host = Host("a", "b")
    async with host.daemon() as keeper:
        await keeper.reclaim(400 * MIB, 60.0)
    host.now = 5000.0
    async with host.daemon():
        assert host.given_mib == [0, 0]


async def test_who_wakes_later_with_less_has_all_of_it_again() -> None:
    host = Host("a")
    async with host.daemon() as keeper:
        keeper.see(record("early"))
        assert host.looks == [], "nobody has ever been asked for anything"
        await keeper.reclaim(400 * MIB, 60.0)
        await host.turn(keeper, 1060.0)
        host.balloons[InstanceId("child")] = 300 * MIB  # Of a capture from before.
        keeper.see(record("child", State.INITIALIZING))
        keeper.see(record("child"))
        await settle()
        assert host.given_mib == [0, 0]
        assert host.looks[-1] == {"child"}
        count = len(host.looks)
        keeper.see(record("child"))
        keeper.see(replace(record("other"), is_deleting=True))
        await settle()
        assert len(host.looks) == count


async def test_who_cannot_be_given_back_is_tried_again() -> None:
    host = Host("a", "b")
    async with host.daemon() as keeper:
        await keeper.reclaim(400 * MIB, 60.0)
        host.failing["b"] = Broken("silent")
        await host.turn(keeper, 1060.0)
        assert host.given_mib == [0, 200]
        del host.failing["b"]
        with anyio.fail_after(20):
            while host.given_mib != [0, 0]:
                await anyio.lowlevel.checkpoint()


async def test_one_that_refuses_is_told_and_the_others_give() -> None:
    host = Host("a", "b", "c")
    host.failing = {"a": Broken("silent"), "b": Unsupported("a child")}
    async with host.daemon() as keeper:
        found = await keeper.reclaim(300 * MIB, 60.0)
    assert statuses(found) == ["error", "unsupported", "applied"]
    assert [one.error for one in found.taken] == ["silent", "a child", ""]
    assert (found.planned_bytes, found.applied_bytes) == (300 * MIB, 100 * MIB)


async def test_it_tells_whether_the_host_is_short_of_memory() -> None:
    host = Host("a")
    async with host.daemon() as keeper:
        states = []
        for percent in (50, 5, 12, 20):
            host.available = 8 * GIB * percent // 100
            states.append((await keeper.reclaim(0, 60.0, is_dry_run=True)).pressure)
    healthy, short = PressureState.HEALTHY, PressureState.PRESSURE
    assert states == [healthy, short, short, healthy]


async def test_a_server_that_is_not_to_take_memory_says_so() -> None:
    host = Host("a")
    async with host.daemon(ReclaimConfig(is_enabled=False)) as keeper:
        with pytest.raises(ReclaimDisabled):
            await keeper.reclaim(MIB, 60.0)
    assert host.looks == []


async def test_a_disk_that_takes_its_time_keeps_nobody_waiting_but_who_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, may_end = Host("a"), threading.Event()
    save = host.hold.save

    def slowly(hold: ReclaimHold) -> None:
        assert may_end.wait(20)
        save(hold)

    monkeypatch.setattr(host.hold, "save", slowly)
    async with host.daemon() as keeper, anyio.create_task_group() as group:
        group.start_soon(keeper.reclaim, 100 * MIB, 60.0)
        await settle()
        assert host.given_mib == [0]  # Nobody is asked before it is written down.
        may_end.set()
    assert host.given_mib != [0]
