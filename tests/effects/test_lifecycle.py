"""Instances live, are forked and end, and nothing of them stays."""

import anyio
import pytest

from ramet.core.errors import RametError
from ramet.core.spec import State
from ramet.instance.fleet_types import InstanceNotFound, WrongState
from ramet.vmm.fake.faults import Call
from tests.effects.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


async def test_a_life_from_create_to_delete_leaves_nothing(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        view = await daemon.fleet.create("src", daemon.spec)
        assert view.record.state is State.RUNNING
        assert (await daemon.memory("src"))["ip"] == view.ip
        assert (await daemon.fleet.stop("src")).record.state is State.STOPPED
        while (stopped := world.leftovers())["admissions"]:
            await anyio.lowlevel.checkpoint()
        assert not stopped["processes"] | stopped["taps"] | stopped["journal"]
        await daemon.fleet.delete("src")
        assert world.leftovers() == before
        assert daemon.site.network.statistics().held_count == 0
        assert daemon.site.layers.statistics() == {"held": 0, "files": 0, "undeleted": 0}


async def test_children_are_themselves_and_have_what_their_source_had(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "warm", "memory")
        await daemon.run("src", "write", "warm", "disk")
        outcomes = await daemon.fleet.fork("src", ["a", "b", "c"])
        assert [outcome.error for outcome in outcomes] == [None, None, None]
        for outcome in outcomes:
            assert outcome.view is not None
            memory = await daemon.memory(outcome.name)
            assert (memory["hostname"], memory["ip"]) == (outcome.name, outcome.view.ip)
            assert memory["machine_id"] == outcome.view.record.identity.machine_id
            assert memory["variables"] == {"warm": "memory"}
            assert await daemon.run(outcome.name, "read", "warm") == "disk"
            assert await daemon.is_well(outcome.name)
        assert (await daemon.memory("src"))["hostname"] == "src"
        assert await daemon.is_well("src")


async def test_generations_of_forks_can_be_deleted_in_any_order(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await daemon.fleet.create("g0", daemon.spec)
        for generation in range(3):
            await daemon.run(f"g{generation}", "write", "generation", str(generation))
            await daemon.fleet.fork(f"g{generation}", [f"g{generation + 1}"])
        await daemon.fleet.delete("g1")
        await daemon.fleet.delete("g0")
        assert await daemon.run("g3", "read", "generation") == "2"
        await daemon.fleet.delete("g2")
        assert await daemon.run("g3", "read", "generation") == "2"
        await daemon.fleet.delete("g3")
        assert world.leftovers() == before


async def test_a_source_can_be_forked_more_often_than_its_chain_may_be_long(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        for index in range(20):
            await daemon.run("src", "write", f"file{index}", str(index))
            await daemon.fleet.fork("src", ["child"])
            await daemon.fleet.delete("child")
        assert daemon.faults.calls.count("collapse_disk") == 1
        assert [await daemon.run("src", "read", f"file{index}") for index in range(20)] == [
            str(index) for index in range(20)
        ]


async def test_a_guest_that_ends_by_itself_is_stopped_and_releases_its_network(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        with pytest.raises(Exception, match=r"hung up|lost"):
            await daemon.run("src", "poweroff")
        assert (await daemon.fleet.wait("src", State.STOPPED, 5)).state is State.STOPPED
        with pytest.raises(WrongState):
            await daemon.fleet.stop("src")
        await daemon.fleet.delete("src")
        with pytest.raises(InstanceNotFound):
            daemon.fleet.get("src")


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["copy_ahead", "switch_disk", "save_devices"])
async def test_a_source_deleted_while_it_is_captured_fails_its_forks_and_leaves_nothing(
    world: World, call: Call, late: bool
) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await daemon.fleet.create("src", daemon.spec)
        hold = daemon.faults.hold(call, late=late)
        errors: list[RametError | None] = []

        async def fork() -> None:
            errors.extend(outcome.error for outcome in await daemon.fleet.fork("src", ["a", "b"]))

        async with anyio.create_task_group() as group:
            group.start_soon(fork)
            await hold.wait_reached()
            group.start_soon(daemon.fleet.delete, "src")
            await anyio.wait_all_tasks_blocked()
            hold.release()
        assert len(errors) == 2
        assert None not in errors
        assert world.leftovers() == before
        assert daemon.site.layers.statistics() == {"held": 0, "files": 0, "undeleted": 0}


async def test_listing_works_while_an_instance_is_going(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        hold = daemon.faults.hold("kill")
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.fleet.delete, "src")
            await hold.wait_reached()
            assert [view.record.is_deleting for view in daemon.fleet.list()] == [True]
            hold.release()
            while daemon.fleet.list():
                await anyio.lowlevel.checkpoint()
