"""Instances sleep and wake, are copied in their sleep, and nothing of it is lost or left."""

import anyio
import pytest

from ramet.core.errors import RametError
from ramet.core.spec import State
from ramet.disks.layers import CHAIN_LENGTH_MAX
from ramet.instance.fleet_types import StandbyInterrupted, WrongState
from ramet.vmm.fake.faults import Call
from ramet.vmm.port import VmmFailed
from tests.effects.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


async def settled(world: World, **expected: int) -> None:
    """Return when the host has as many of each kind as expected."""
    while {kind: len(world.leftovers()[kind]) for kind in expected} != expected:
        await anyio.lowlevel.checkpoint()


async def test_a_sleeper_wakes_with_its_memory_its_disk_and_its_address(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        ip = (await daemon.fleet.create("src", daemon.spec)).ip
        await daemon.run("src", "set", "warm", "memory")
        await daemon.run("src", "write", "warm", "disk")
        asleep = await daemon.fleet.standby("src")
        assert (asleep.record.state, asleep.ip) == (State.STANDBY, ip)
        await settled(world, processes=0, taps=0, admissions=0, journal=0, captures=1)
        awake = await daemon.fleet.restore("src")
        assert (awake.record.state, awake.ip) == (State.RUNNING, ip)
        memory = await daemon.memory("src")
        assert (memory["variables"], memory["ip"], memory["hostname"]) == ({"warm": "memory"}, ip, "src")
        assert await daemon.run("src", "read", "warm") == "disk"
        assert await daemon.is_well("src")
        await settled(world, captures=0, processes=1, layers=2)
        await daemon.fleet.delete("src")
        assert world.leftovers() == before


@pytest.mark.parametrize("call", ["copy_ahead", "copy_rest"])
async def test_a_wake_that_comes_while_memory_is_written_lets_it_go_on_at_once(
    world: World, call: Call
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        hold = daemon.faults.hold(call)
        errors = []

        async def sleep() -> None:
            with pytest.raises(StandbyInterrupted) as caught:
                await daemon.fleet.standby("src")
            errors.append(caught.value)

        async with anyio.create_task_group() as group:
            group.start_soon(sleep)
            await hold.wait_reached()
            assert daemon.fleet.get("src").record.state is State.PAUSED
            assert (await daemon.fleet.restore("src")).record.state is State.RUNNING
        assert len(errors) == 1
        assert await daemon.is_well("src")
        await settled(world, captures=0, processes=1, journal=0)
        assert (await daemon.fleet.standby("src")).record.state is State.STANDBY


@pytest.mark.parametrize("call", ["copy_ahead", "stop", "save_devices", "copy_rest"])
async def test_an_instance_that_cannot_be_stored_runs_on(world: World, call: Call) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail(call, VmmFailed("no"))
        with pytest.raises(RametError):
            await daemon.fleet.standby("src")
        assert daemon.fleet.get("src").record.state is State.RUNNING
        assert await daemon.is_well("src")
        await settled(world, captures=0, processes=1, journal=0)


@pytest.mark.parametrize("call", ["start_waiting", "load"])
async def test_a_wake_that_fails_can_be_tried_again(world: World, call: Call) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "warm", "memory")
        await daemon.fleet.standby("src")
        await settled(world, processes=0, admissions=0, journal=0)
        asleep = world.leftovers()
        daemon.faults.fail(call, VmmFailed("no"))
        with pytest.raises(RametError):
            await daemon.fleet.restore("src")
        view = daemon.fleet.get("src")
        assert view.record.state is State.STANDBY
        assert view.record.state_error
        assert world.leftovers() == asleep
        awake = await daemon.fleet.restore("src")
        assert (awake.record.state, awake.record.state_error) == (State.RUNNING, "")
        assert (await daemon.memory("src"))["variables"] == {"warm": "memory"}


async def test_a_vmm_that_outlives_its_sleep_is_ended_by_the_wake(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail("kill", VmmFailed("no"))
        await daemon.fleet.standby("src")
        await daemon.fleet.restore("src")
        assert await daemon.is_well("src")
        await settled(world, processes=1, taps=1)


@pytest.mark.parametrize("late", [False, True])
async def test_nothing_is_held_of_a_sleeper_whose_vmm_could_not_be_seen_to_end(
    world: World, *, late: bool
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail("kill", VmmFailed("no"), after=1, late=late)
        asleep = (await daemon.fleet.standby("src")).record
        while not daemon.fleet.get("src").record.state_error:
            await anyio.lowlevel.checkpoint()
        assert asleep.id not in daemon.site.rigs
        await daemon.fleet.restore("src")
        assert await daemon.is_well("src")
        await settled(world, processes=1, taps=1)


async def test_a_vmm_that_cannot_be_ended_is_not_forgotten_when_its_instance_is_deleted_at_once(
    world: World,
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail("kill", VmmFailed("no"))
        hold = daemon.faults.hold("kill")
        await daemon.fleet.standby("src")
        await hold.wait_reached()
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.fleet.delete, "src")
            while not daemon.fleet.get("src").record.is_deleting:
                await anyio.lowlevel.checkpoint()
            hold.release(VmmFailed("no"))
        await settled(world, processes=0, taps=0, folders=0, records=0)


async def test_sleepers_and_those_who_wake_outlive_the_daemon(world: World) -> None:
    async with world.daemon() as daemon:
        for name in ("asleep", "awake"):
            await daemon.fleet.create(name, daemon.spec)
            await daemon.run(name, "set", "name", name)
            await daemon.fleet.standby(name)
        await daemon.fleet.restore("awake")
    async with world.daemon() as daemon:
        assert daemon.fleet.get("asleep").record.state is State.STANDBY
        assert await daemon.is_well("awake")
        await daemon.fleet.restore("asleep")
        for name in ("asleep", "awake"):
            assert (await daemon.memory(name))["variables"] == {"name": name}
            await daemon.fleet.delete(name)
        await settled(world, captures=0, layers=0, folders=0, records=0, processes=0, journal=0)


@pytest.mark.parametrize("target", [State.RUNNING, State.STANDBY, State.STOPPED])
@pytest.mark.parametrize("source", [State.RUNNING, State.STANDBY, State.STOPPED])
async def test_every_state_can_be_forked_to_every_state(world: World, source: State, target: State) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "warm", "memory")
        await daemon.run("src", "write", "warm", "disk")
        if source is State.STANDBY:
            await daemon.fleet.standby("src")
        elif source is State.STOPPED:
            await daemon.fleet.stop("src")
        outcomes = await daemon.fleet.fork("src", ["a", "b"], target=target)
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert daemon.fleet.get("src").record.state is source
        for name in ("a", "b"):
            assert daemon.fleet.get(name).record.state is target
            if target is State.STANDBY:
                await daemon.fleet.restore(name)
            elif target is State.STOPPED:
                await daemon.fleet.start(name)
            has_memory = State.STOPPED not in (source, target)
            memory = await daemon.memory(name)
            assert memory["variables"] == ({"warm": "memory"} if has_memory else {})
            assert memory["hostname"] == name
            assert await daemon.run(name, "read", "warm") == "disk"
            await daemon.run(name, "write", "warm", name)
        if source is State.STANDBY:
            await daemon.fleet.restore("src")
        elif source is State.STOPPED:
            await daemon.fleet.start("src")
        assert await daemon.run("src", "read", "warm") == "disk"
        for name in ("src", "a", "b"):
            await daemon.fleet.delete(name)
        await settled(world, captures=0)
        assert world.leftovers() == before


@pytest.mark.parametrize("call", ["start_waiting", "load"])
async def test_of_a_fork_whose_child_does_not_wake_only_the_source_is_left(world: World, call: Call) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.standby("src")
        await settled(world, processes=0, admissions=0, journal=0)
        before = world.leftovers()
        daemon.faults.fail(call, VmmFailed("no"))
        (outcome,) = await daemon.fleet.fork("src", ["child"], target=State.RUNNING)
        assert outcome.error is not None
        assert world.leftovers() == before
        (outcome,) = await daemon.fleet.fork("src", ["child"], target=State.RUNNING)
        assert outcome.error is None


@pytest.mark.parametrize("state", [State.STANDBY, State.STOPPED])
async def test_what_neither_runs_nor_sleeps_is_refused(world: World, state: State) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        with pytest.raises(WrongState):
            await daemon.fleet.restore("src")
        await (daemon.fleet.standby if state is State.STANDBY else daemon.fleet.stop)("src")
        with pytest.raises(WrongState):
            await daemon.fleet.standby("src")
        with pytest.raises(WrongState):
            await daemon.fleet.stop("src")


async def test_a_disk_stays_short_however_often_its_instance_sleeps(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        lengths = []
        for number in range(CHAIN_LENGTH_MAX + 4):
            await daemon.run("src", "write", f"file{number}", str(number))
            await daemon.fleet.standby("src")
            await daemon.fleet.restore("src")
            layer = daemon.fleet.get("src").record.layer
            assert layer is not None
            lengths.append(len(daemon.site.layers.chain(layer)))
        assert max(lengths) <= CHAIN_LENGTH_MAX + 1
        for number in range(CHAIN_LENGTH_MAX + 4):
            assert await daemon.run("src", "read", f"file{number}") == str(number)
        await daemon.fleet.delete("src")
        await settled(world, layers=0, captures=0)
