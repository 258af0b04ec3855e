"""A stopped instance boots again from the disk it has, and a start that fails takes nothing away."""

import os
import signal

import anyio
import anyio.lowlevel
import pytest

from ramet.core.spec import State
from ramet.instance.fleet_types import InstanceView, WrongState
from ramet.vmm.port import VmmFailed
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


async def stop(daemon: Daemon, name: str) -> InstanceView:
    """Stop an instance and wait until what only its run needed is given back, which nobody else waits for."""
    view = await daemon.fleet.stop(name)
    while view.record.id in daemon.site.rigs or daemon.site.network.statistics().attached_count:
        await anyio.lowlevel.checkpoint()
    return view


async def test_stop_and_start_keep_disk_name_address_and_machine(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "write", "kept", "yes")
        before = await stop(daemon, "src")
        for _ in range(2):
            view = await daemon.fleet.start("src")
            assert (view.record.state, view.record.exit, view.record.state_error) == (State.RUNNING, None, "")
            assert (view.record.identity, view.record.layer) == (before.record.identity, before.record.layer)
            assert (view.ip, view.mac) == (before.ip, before.mac)
            assert await daemon.run("src", "read", "kept") == "yes"
            assert (await stop(daemon, "src")).record.state is State.STOPPED
        assert not world.leftovers()["taps"]
        assert not world.leftovers()["admissions"]
        await daemon.fleet.delete("src")
        assert not any(world.leftovers().values())


async def test_a_fork_and_its_source_start_again_from_their_chains(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        assert (await daemon.fleet.fork("src", ["child"]))[0].error is None
        for name in ("src", "child"):
            await daemon.fleet.stop(name)
            await daemon.fleet.start(name)
            assert await daemon.is_well(name)
        assert (await daemon.fleet.fork("child", ["grandchild"]))[0].error is None


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_a_start_that_fails_leaves_it_stopped_with_its_disk(world: World, late: bool) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "write", "kept", "yes")
        await stop(daemon, "src")
        before = world.leftovers()
        daemon.faults.fail("boot", VmmFailed("on demand"), late=late)
        with pytest.raises(VmmFailed, match="on demand"):
            await daemon.fleet.start("src")
        record = daemon.fleet.get("src").record
        assert (record.state, record.state_error) == (State.STOPPED, "on demand")
        assert world.leftovers() == before
        await daemon.fleet.start("src")
        assert await daemon.run("src", "read", "kept") == "yes"


async def test_only_what_is_stopped_can_be_started(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        with pytest.raises(WrongState):
            await daemon.fleet.start("src")


async def test_a_daemon_that_leaves_in_the_middle_of_a_start_leaves_it_stopped(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await stop(daemon, "src")
        before = world.leftovers()
        hold = daemon.faults.hold("boot")
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.fleet.start, "src")
            await hold.wait_reached()
            group.cancel_scope.cancel()
    async with world.daemon() as daemon:
        assert (await daemon.fleet.wait("src", State.STOPPED, 5)).state is State.STOPPED
        assert "while it was being started" in daemon.fleet.get("src").record.state_error
        while daemon.site.network.statistics().attached_count:
            await anyio.lowlevel.checkpoint()
        assert world.leftovers() == before
        await daemon.fleet.start("src")
        assert await daemon.is_well("src")


async def test_a_lost_database_is_made_again_from_the_folders(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.fork("src", ["child"])
        await daemon.run("child", "write", "kept", "yes")
        await daemon.fleet.stop("child")
        before = {view.record.name: view.record for view in daemon.fleet.list()}
    for path in (world.folder / "data").glob("state.db*"):
        path.unlink()
    async with world.daemon() as daemon:
        assert (await daemon.fleet.wait("src", State.RUNNING, 5)).state is State.RUNNING
        assert (await daemon.fleet.wait("child", State.STOPPED, 5)).state is State.STOPPED
        for name, record in before.items():
            found = daemon.fleet.get(name).record
            assert found.identity == record.identity
            assert (found.spec, found.layer) == (record.spec, record.layer)
        assert await daemon.is_well("src")
        await daemon.fleet.start("child")
        assert await daemon.run("child", "read", "kept") == "yes"


async def test_stop_all_stops_what_runs_and_forgives_what_has_ended(world: World) -> None:
    async with world.daemon() as daemon:
        for name in ("a", "b", "c"):
            await daemon.fleet.create(name, daemon.spec)
        os.kill(daemon.site.rigs[daemon.fleet.get("b").record.id].vm.runtime.pid, signal.SIGKILL)
        await daemon.fleet.stop_all()
        assert {view.record.state for view in daemon.fleet.list()} == {State.STOPPED}
        assert not world.processes()
