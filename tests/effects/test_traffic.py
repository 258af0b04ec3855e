"""Sleepers that traffic wakes: called, woken once, armed again, and gone without trace."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.core.auto_standby import AutoStandby
from ramet.core.spec import InstanceSpec, State
from ramet.policies.traffic import TrafficKeeper
from ramet.vmm.port import VmmFailed
from tests.effects.test_standby import settled
from tests.effects.world import Daemon, World, performer_of
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
PORT = 80
TIMEOUT_S = 30.0


@asynccontextmanager
async def kept(daemon: Daemon) -> AsyncIterator[TrafficKeeper]:
    """Have what sleeps in a daemon be woken by traffic inside."""
    performer = performer_of(daemon.fleet)
    keeper = TrafficKeeper(daemon.fleet, performer)
    performer.watch(keeper.see)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, [view.record for view in daemon.fleet.list()])
        yield keeper
        group.cancel_scope.cancel()


def woken(daemon: Daemon) -> InstanceSpec:
    """Return the spec of an instance that traffic wakes."""
    return replace(daemon.spec, auto_standby=AutoStandby(False, 60.0, wakes_on_traffic=True))


async def armed(daemon: Daemon, keeper: TrafficKeeper, ref: str = "src") -> None:
    """Return when an instance sleeps and can be called."""
    await until(lambda: keeper.status(daemon.fleet.get(ref).record).is_armed)


def call(daemon: Daemon, ref: str = "src") -> None:
    """Ask an instance for a connection, once, and do not wait for it."""
    with socket.socket() as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect((daemon.fleet.get(ref).ip, PORT))


async def awake(daemon: Daemon, ref: str = "src") -> None:
    await until(lambda: daemon.fleet.get(ref).record.state is State.RUNNING)
    assert await daemon.is_well(ref)


async def test_a_sleeper_that_is_called_wakes_and_can_be_called_again(world: World) -> None:
    async with world.daemon() as daemon, kept(daemon) as keeper:
        before = world.leftovers()
        await daemon.fleet.create("src", woken(daemon))
        await daemon.run("src", "set", "warm", "memory")
        for _ in range(2):
            await daemon.fleet.standby("src")
            await armed(daemon, keeper)
            await settled(world, processes=0, taps=1, admissions=1, journal=0, captures=1)
            call(daemon)
            await awake(daemon)
        assert (await daemon.memory("src"))["variables"] == {"warm": "memory"}
        await settled(world, processes=1, taps=1, admissions=1, captures=0)
        await daemon.fleet.delete("src")
        assert world.leftovers() == before


async def test_who_restores_what_traffic_wakes_waits_for_the_same_wake(world: World) -> None:
    async with world.daemon() as daemon, kept(daemon) as keeper:
        await daemon.fleet.create("src", woken(daemon))
        await daemon.fleet.standby("src")
        await armed(daemon, keeper)
        hold = daemon.faults.hold("load")
        call(daemon)
        await hold.wait_reached()
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.fleet.restore, "src")
            await anyio.lowlevel.checkpoint()
            hold.release()
        await awake(daemon)
        await settled(world, processes=1, taps=1)


async def test_one_that_is_to_be_called_no_more_keeps_the_tap_that_it_is_just_waking_on(world: World) -> None:
    async with world.daemon() as daemon, kept(daemon) as keeper:
        instance = (await daemon.fleet.create("src", woken(daemon))).record.id
        await daemon.fleet.standby("src")
        await armed(daemon, keeper)
        hold = daemon.faults.hold("load")
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.fleet.restore, "src")
            await hold.wait_reached()
            group.start_soon(performer_of(daemon.fleet).disarm, instance)
            await anyio.wait_all_tasks_blocked()
            assert daemon.site.network.is_armed(instance)
            hold.release()
        await awake(daemon)
        await settled(world, processes=1, taps=1, admissions=1)


async def test_a_wake_that_fails_is_told_of_and_the_next_call_tries_again(world: World) -> None:
    async with world.daemon() as daemon, kept(daemon) as keeper:
        await daemon.fleet.create("src", woken(daemon))
        await daemon.fleet.standby("src")
        await armed(daemon, keeper)
        daemon.faults.fail("load", VmmFailed("no"))
        call(daemon)
        await until(lambda: bool(keeper.status(daemon.fleet.get("src").record).error))
        record = daemon.fleet.get("src").record
        assert (record.state, keeper.status(record).is_armed) == (State.STANDBY, False)
        await armed(daemon, keeper)
        assert daemon.fleet.get("src").record.state is State.STANDBY
        call(daemon)
        await awake(daemon)
        assert keeper.status(daemon.fleet.get("src").record).error == ""


async def test_a_restore_that_nobody_called_for_takes_over_the_tap(world: World) -> None:
    async with world.daemon() as daemon, kept(daemon) as keeper:
        await daemon.fleet.create("src", woken(daemon))
        await daemon.fleet.standby("src")
        await armed(daemon, keeper)
        await daemon.fleet.restore("src")
        assert await daemon.is_well("src")
        assert not daemon.site.network.is_armed(daemon.fleet.get("src").record.id)


async def test_a_sleeper_that_is_no_more_to_be_woken_gives_its_tap_back(world: World) -> None:
    async with world.daemon() as daemon, kept(daemon) as keeper:
        await daemon.fleet.create("src", woken(daemon))
        await daemon.fleet.standby("src")
        await armed(daemon, keeper)
        await daemon.fleet.update("src", {"auto_standby": AutoStandby(False, 60.0)})
        await settled(world, taps=0, admissions=0)
        await daemon.fleet.update("src", {"auto_standby": AutoStandby(False, 60.0, wakes_on_traffic=True)})
        await armed(daemon, keeper)


async def test_an_armed_sleeper_is_forked_and_deleted_and_nothing_is_left(world: World) -> None:
    async with world.daemon() as daemon, kept(daemon) as keeper:
        before = world.leftovers()
        await daemon.fleet.create("src", woken(daemon))
        await daemon.fleet.standby("src")
        await armed(daemon, keeper)
        outcomes = await daemon.fleet.fork("src", ["one", "two"])
        assert [outcome.error for outcome in outcomes] == [None, None]
        for name in ("one", "two"):
            await armed(daemon, keeper, name)
        await settled(world, taps=3)
        call(daemon, "two")
        await awake(daemon, "two")
        assert daemon.fleet.get("src").record.state is State.STANDBY
        for name in ("src", "one", "two"):
            await daemon.fleet.delete(name)
        assert world.leftovers() == before


async def test_a_daemon_that_starts_listens_for_those_that_sleep(world: World) -> None:
    async with world.daemon() as daemon, kept(daemon) as keeper:
        await daemon.fleet.create("src", woken(daemon))
        await daemon.fleet.standby("src")
        await armed(daemon, keeper)
    async with world.daemon() as daemon, kept(daemon) as keeper:
        await armed(daemon, keeper)
        await settled(world, taps=1, admissions=1)
        call(daemon)
        await awake(daemon)
