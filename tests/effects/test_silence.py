"""A VMM that runs and does not answer is left alone, shown, and followed."""

import json
import os
import signal
import sqlite3

import anyio
import anyio.lowlevel
import pytest

from ramet.core.spec import State
from ramet.effects.captures import CAPTURE
from ramet.instance.fleet_types import ForkOutcome
from ramet.vmm.fake.faults import Faults
from ramet.vmm.port import LiveCapture, VmmSilent
from tests.effects.crashing import Crashes
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

PATIENCE_S = 0.5
FOLLOW_TIMEOUT_S = 60


async def start_and_silence(world: World) -> int:
    """Have a daemon start an instance and leave, and its VMM stand still; returns the pid of that."""
    world.vmm_timeout_s = PATIENCE_S
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "who", "src")
    (pid,) = world.processes()
    os.kill(pid, signal.SIGSTOP)
    return pid


def check_silent(world: World, daemon: Daemon, pid: int) -> None:
    record = daemon.fleet.get("src").record
    assert record.state is State.UNKNOWN
    assert "does not answer" in record.state_error
    assert list(world.processes()) == [pid]
    assert len(world.leftovers()["taps"]) == len(world.leftovers()["layers"]) == 1


async def follow(daemon: Daemon, state: State) -> None:
    """Return when the instance is in `state`. (The fleet's own wait ends with Unknown.)"""
    with anyio.fail_after(FOLLOW_TIMEOUT_S):
        while daemon.fleet.get("src").record.state is not state:
            await anyio.lowlevel.checkpoint()


async def test_a_vmm_that_stands_still_survives_every_restart_and_runs_when_it_goes_on(world: World) -> None:
    pid = await start_and_silence(world)
    for _ in range(2):
        async with world.daemon() as daemon:
            check_silent(world, daemon, pid)
    os.kill(pid, signal.SIGCONT)
    async with world.daemon() as daemon:
        await follow(daemon, State.RUNNING)
        assert daemon.fleet.get("src").record.state_error == ""
        assert await daemon.run("src", "get", "who") == "src"


async def test_a_vmm_that_answers_again_is_taken_hold_of_without_a_restart(world: World) -> None:
    pid = await start_and_silence(world)
    async with world.daemon() as daemon:
        check_silent(world, daemon, pid)
        os.kill(pid, signal.SIGCONT)
        await follow(daemon, State.RUNNING)
        assert daemon.fleet.get("src").record.state_error == ""
        assert await daemon.run("src", "get", "who") == "src"
        assert (await daemon.fleet.fork("src", ["child"]))[0].error is None
        for name in ("src", "child"):
            await daemon.fleet.delete(name)
        assert not any(world.leftovers().values())


async def test_a_vmm_that_ends_without_having_answered_is_stopped_and_can_be_started(world: World) -> None:
    pid = await start_and_silence(world)
    async with world.daemon() as daemon:
        check_silent(world, daemon, pid)
        os.kill(pid, signal.SIGKILL)
        await follow(daemon, State.STOPPED)
        assert "while it did not answer" in daemon.fleet.get("src").record.state_error
        await daemon.fleet.start("src")
        assert await daemon.is_well("src")


async def test_a_delete_ends_a_vmm_that_stands_still(world: World) -> None:
    await start_and_silence(world)
    async with world.daemon() as daemon:
        await daemon.fleet.delete("src")
        assert not any(world.leftovers().values())


async def test_a_layer_it_switched_to_unseen_is_learned_when_it_answers(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "write", "kept", "yes")
        rig = daemon.site.rigs[daemon.fleet.get("src").record.id]
        old = rig.layer
        new = daemon.site.layers.create_on(old, daemon.spec.overlay_bytes)
        daemon.site.database.begin(CAPTURE, rig.instance, layer=new)
        assert isinstance(rig.vm, LiveCapture)
        await rig.vm.prepare_disk(daemon.site.layers.path(new))
        async with rig.vm.paused():
            await rig.vm.switch_disk(daemon.site.layers.path(new))
    faults = Faults()
    faults.fail("adopt", VmmSilent("it says nothing"))
    async with world.daemon(faults) as daemon:
        await follow(daemon, State.RUNNING)
        assert daemon.fleet.get("src").record.layer == new
        assert daemon.site.layers.statistics()["held"] == 1
        assert await daemon.run("src", "read", "kept") == "yes"


async def test_what_a_capture_that_was_cut_short_left_is_kept_until_the_silence_ends(
    world: World, crashes: Crashes
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
    assert crashes.die("fork", "FakeVm.save_devices 1")  # It has switched its disk.
    world.vmm_timeout_s = PATIENCE_S
    for pid in world.processes():
        os.kill(pid, signal.SIGSTOP)
    with sqlite3.connect(world.folder / "data" / "state.db") as database:
        (facts,) = database.execute("SELECT facts FROM journal WHERE operation = 'capture'").fetchone()
    switched = json.loads(facts)["layer"]
    runtimes = []
    for _ in range(2):
        async with world.daemon() as daemon:
            record = daemon.fleet.get("src").record
            assert (record.state, record.layer) == (State.UNKNOWN, switched)
            assert record.runtime is not None
            runtimes.append(record.runtime)
    os.kill(runtimes[0].pid, signal.SIGKILL)
    async with world.daemon() as daemon:
        await follow(daemon, State.STOPPED)
        assert daemon.fleet.get("src").record.layer == switched
        await daemon.fleet.start("src")
        assert await daemon.is_well("src")


async def test_a_source_that_hangs_in_its_capture_fails_the_fork_and_runs_on_when_it_goes_on(
    world: World,
) -> None:
    world.vmm_timeout_s = PATIENCE_S
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        (pid,) = world.processes()
        hold = daemon.faults.hold("stop")
        outcomes: list[ForkOutcome] = []

        async def fork() -> None:
            outcomes.extend(await daemon.fleet.fork("src", ["child"]))

        with anyio.fail_after(FOLLOW_TIMEOUT_S):
            async with anyio.create_task_group() as group:
                group.start_soon(fork)
                await hold.wait_reached()  # Its workload is frozen.
                os.kill(pid, signal.SIGSTOP)
                hold.release()
                while "forget_disk" not in daemon.faults.calls:  # Neither pause nor resume was answered.
                    await anyio.lowlevel.checkpoint()
                os.kill(pid, signal.SIGCONT)
            assert isinstance(outcomes[0].error, VmmSilent)
            while not await daemon.is_well("src"):
                await anyio.lowlevel.checkpoint()
        assert (await daemon.fleet.fork("src", ["child"]))[0].error is None
