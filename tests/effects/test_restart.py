"""A daemon that comes back finds every guest running, and nothing half-made."""

import os
import shutil
import signal
from unittest.mock import Mock

import anyio
import pytest

from ramet.core.spec import State
from ramet.effects.folder import SPEC_FILE
from ramet.instance.events import ActionFailed
from ramet.instance.fleet_types import DeleteIncomplete
from ramet.store.database import StateUnreadable, StateUnwritable
from ramet.store.paths import FolderInUse
from ramet.vmm.fake.faults import CAPTURE_CALLS, Call, Faults
from ramet.vmm.port import VmmFailed
from tests.effects.world import Daemon, World
from tests.linux.pids import start_as

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

WELL_TIMEOUT_S = 20.0


async def check_only(world: World, daemon: Daemon, names: set[str]) -> None:
    """These instances run and are well, and the host has nothing of any other."""
    views = {view.record.name: view.record for view in daemon.fleet.list()}
    assert views.keys() == names
    for name in names:
        assert views[name].state is State.RUNNING
        with anyio.fail_after(WELL_TIMEOUT_S):  # A daemon serves before all guests have been thawed.
            while not await daemon.is_well(name):
                await anyio.lowlevel.checkpoint()
    ids = {record.id for record in views.values()}
    found = world.leftovers()
    assert set(world.processes().values()) == ids
    assert len(found["processes"]) == len(found["taps"]) == len(found["admissions"]) == len(ids)
    assert found["folders"] == found["records"] == ids
    assert not found["journal"]
    layers = daemon.site.layers
    chains = [layers.chain(record.layer) for record in views.values() if record.layer is not None]
    assert found["layers"] == {path.name for chain in chains for path, form in chain if form == "qcow2"}


async def test_guests_run_on_when_the_daemon_leaves_and_comes_back(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "who", "src")
        await daemon.fleet.fork("src", ["child"])
        boot_id = (await daemon.memory("src"))["boot_id"]
    async with world.daemon() as daemon:
        await check_only(world, daemon, {"src", "child"})
        assert (await daemon.memory("src"))["boot_id"] == boot_id
        assert await daemon.run("child", "get", "who") == "src"
        assert (await daemon.fleet.fork("child", ["grandchild"]))[0].error is None
        assert (await daemon.fleet.stop("src")).record.state is State.STOPPED
        for name in ("src", "child", "grandchild"):
            await daemon.fleet.delete(name)
        await check_only(world, daemon, set())


@pytest.mark.parametrize("call", [*CAPTURE_CALLS[1:-1], "start_waiting", "load"])
async def test_a_daemon_that_leaves_in_the_middle_of_a_fork_leaves_nothing_half_made(
    world: World, call: Call
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        source = daemon.fleet.get("src").record.id
        hold = daemon.faults.hold(call)
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.fleet.fork, "src", ["a", "b"])
            await hold.wait_reached()
            group.cancel_scope.cancel()
    assert set(world.processes().values()) == {source}
    assert await world.ask_guest(source) == "running"
    async with world.daemon() as daemon:
        await check_only(world, daemon, {"src"})


async def test_a_guest_that_ended_while_the_daemon_was_away_is_stopped(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        rig = daemon.site.rigs[daemon.fleet.get("src").record.id]
    os.kill(rig.vm.runtime.pid, signal.SIGKILL)
    async with world.daemon() as daemon:
        outcome = await daemon.fleet.wait("src", State.STOPPED, 5)
        assert "while the daemon was away" in outcome.state_error
        await daemon.fleet.delete("src")
        await check_only(world, daemon, set())


async def test_whoever_has_the_pid_of_a_vmm_that_ended_is_left_alone(world: World) -> None:
    world.nursery = None  # The VMM is a child of this process.
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        pid = daemon.site.rigs[daemon.fleet.get("src").record.id].vm.runtime.pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # noqa: ASYNC222
    start_as(pid, ("/bin/sleep", "1000"))
    try:
        async with world.daemon() as daemon:
            assert (await daemon.fleet.wait("src", State.STOPPED, 5)).state is State.STOPPED
            await daemon.fleet.delete("src")
            await check_only(world, daemon, set())
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # noqa: ASYNC222
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # noqa: ASYNC222


async def test_a_second_daemon_on_a_folder_is_refused_and_the_first_goes_on(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        before = world.leftovers()
        with pytest.raises(FolderInUse, match="running daemon"):
            async with world.daemon():
                pass
        assert world.leftovers() == before
        assert await daemon.is_well("src")
    async with world.daemon() as daemon:  # It was held by the first alone.
        await check_only(world, daemon, {"src"})


async def test_a_guest_that_cannot_be_adopted_is_ended_and_shown_as_stopped(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
    faults = Faults()
    faults.fail("adopt", VmmFailed("on demand"))
    async with world.daemon(faults) as daemon:
        assert (await daemon.fleet.wait("src", State.STOPPED, 5)).state is State.STOPPED
        assert not world.processes()


async def test_an_instance_whose_disk_is_lost_is_shown_and_keeps_nobody_from_starting(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.stop("src")
        layer = daemon.fleet.get("src").record.layer
        assert layer is not None
        daemon.site.layers.path(layer).unlink()
    async with world.daemon() as daemon:
        record = daemon.fleet.get("src").record
        assert record.state is State.UNKNOWN
        assert "missing" in record.state_error
        await daemon.fleet.delete("src")
        await check_only(world, daemon, set())


@pytest.mark.parametrize("kind", ["link", "fifo"])
async def test_what_a_vmm_put_in_the_place_of_a_spec_is_not_taken_for_one(world: World, kind: str) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.stop("src")
        record = daemon.fleet.get("src").record
        spec = daemon.site.instance_folder(record.id) / SPEC_FILE
        daemon.site.database.forget(record.id)
    elsewhere = spec.rename(world.folder / "elsewhere")
    if kind == "link":
        spec.symlink_to(elsewhere)
    else:
        os.mkfifo(spec)
    with pytest.raises(StateUnreadable, match="cannot be read"):
        async with world.daemon():
            pass
    spec.unlink()
    elsewhere.rename(spec)
    async with world.daemon() as daemon:
        assert daemon.fleet.get("src").record.id == record.id


async def test_a_sleeper_wakes_when_its_disk_could_not_be_found_at_one_start_and_is_there_again(
    world: World,
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "warm", "memory")
        layer = (await daemon.fleet.standby("src")).record.layer
        assert layer is not None
        file = daemon.site.layers.path(layer)
    aside = file.rename(world.folder / "aside")
    async with world.daemon() as daemon:
        assert daemon.fleet.get("src").record.state is State.UNKNOWN
    aside.rename(file)
    async with world.daemon() as daemon:
        await daemon.fleet.restore("src")
        assert (await daemon.memory("src"))["variables"] == {"warm": "memory"}


async def test_of_a_sleeper_without_its_memory_nothing_is_held_when_it_cannot_be_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        capture = (await daemon.fleet.standby("src")).record.capture
        assert capture is not None
    shutil.rmtree(world.folder / "data" / "captures" / capture)
    async with world.daemon() as daemon:
        assert daemon.fleet.get("src").record.state is State.UNKNOWN
        with monkeypatch.context() as patch:
            patch.setattr(daemon.site.database, "forget", Mock(side_effect=StateUnwritable("no")))
            with pytest.raises(DeleteIncomplete):
                await daemon.fleet.delete("src")
        assert daemon.site.captures.statistics() == {"held": 0}
        await daemon.fleet.delete("src")
        await check_only(world, daemon, set())


async def test_a_guest_of_which_we_lost_track_is_neither_ended_nor_forgotten_by_a_restart(
    world: World,
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.tell(daemon.fleet.get("src").record.id, ActionFailed(VmmFailed("lost track")))
        assert daemon.fleet.get("src").record.state is State.UNKNOWN
    async with world.daemon() as daemon:
        record = daemon.fleet.get("src").record
        assert (record.state, record.state_error) == (State.UNKNOWN, "lost track")
        assert await world.ask_guest(record.id) == "running"
        await daemon.fleet.delete("src")
        await check_only(world, daemon, set())
