"""A daemon whose instances run on Firecracker: a strict fake behind the real driver, on a real host."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId
from ramet.core.spec import State
from ramet.effects.output import OUTPUT_FILE
from ramet.linux import netlink
from ramet.linux.process import list_command_lines
from ramet.store.paths import DataFolder
from ramet.vmm.fake.faults import Faults
from ramet.vmm.firecracker.build import NAME_PREFIX
from ramet.vmm.firecracker.driver import FirecrackerDriver
from ramet.vmm.firecracker.jail import JailConfig, JailMode
from ramet.vmm.port import Driver, SnapshotIncompatible
from tests.effects.world import Daemon, World, new_folder
from tests.vmm.fake_firecracker import faults as armed
from tests.vmm.fake_firecracker.faults import VARIABLE, Kind
from tests.vmm.fake_firecracker.program import NEWEST, VERSION_VARIABLE
from tests.vmm.firecracker_bench import PROGRAM

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

BURST = 25
BEGUN = b"the workload has begun\n"


class FirecrackerWorld(World):
    """A host with a fake Firecracker. `failing`: the folder in which its calls are armed to fail."""

    def __init__(self, folder: Path, images: Path) -> None:
        super().__init__(folder, images)
        self.memory_bytes = 2 << 20
        self.version = NEWEST
        self.failing = folder / "faults"
        self.failing.mkdir()

    def open_driver(self, data: DataFolder, faults: Faults) -> Driver:
        environment = os.environ | {VERSION_VARIABLE: self.version, VARIABLE: str(self.failing)}
        return FirecrackerDriver.open(
            data.instances, environment=environment, program=PROGRAM, jail=JailConfig(JailMode.OFF)
        )

    def processes(self) -> dict[int, InstanceId]:
        found = {}
        for pid, arguments in list_command_lines():
            if str(PROGRAM) in arguments and "--id" in arguments:
                try:
                    is_ours = Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(self.folder)
                except FileNotFoundError:
                    continue  # It has just ended.
                if is_ours:
                    name = arguments[arguments.index("--id") + 1]
                    found[pid] = InstanceId(name.removeprefix(NAME_PREFIX))
        return found

    def fail(self, call: str, kind: Kind = "fail") -> None:
        armed.arm(self.failing, kind, call)


@pytest.fixture
async def world(images: Path) -> AsyncIterator[FirecrackerWorld]:
    world = FirecrackerWorld(new_folder(), images)
    yield world
    await world.aclose()


async def settled(world: World, **expected: int) -> None:
    """Return when the host has as many of each kind as expected."""
    with anyio.fail_after(30):
        while {kind: len(world.leftovers()[kind]) for kind in expected} != expected:
            await anyio.lowlevel.checkpoint()


async def create(daemon: Daemon) -> None:
    await daemon.fleet.create("src", daemon.spec)
    await daemon.run("src", "set", "warm", "memory")
    await daemon.run("src", "write", "warm", "disk")


async def check_warm(daemon: Daemon, name: str) -> None:
    """It is itself, and has what its source had."""
    memory, view = await daemon.memory(name), daemon.fleet.get(name)
    assert (memory["hostname"], memory["ip"]) == (name, view.ip)
    assert memory["machine_id"] == view.record.identity.machine_id
    assert memory["variables"] == {"warm": "memory"}
    assert await daemon.run(name, "read", "warm") == "disk"
    assert await daemon.is_well(name)


async def test_a_life_from_create_to_delete_leaves_nothing(world: FirecrackerWorld) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        view = await daemon.fleet.create("src", daemon.spec)
        assert view.record.state is State.RUNNING
        assert (await daemon.memory("src"))["ip"] == view.ip
        await settled(world, processes=1, taps=1, admissions=1, layers=2)  # It, and what it is a copy of.
        assert (await daemon.fleet.stop("src")).record.state is State.STOPPED
        await settled(world, processes=0, taps=0, admissions=0, journal=0)
        assert (await daemon.fleet.start("src")).record.state is State.RUNNING
        assert await daemon.run("src", "echo", "again") == "again\n"
        await daemon.fleet.delete("src")
        assert world.leftovers() == before
        assert daemon.site.network.statistics().held_count == 0
        assert daemon.site.layers.statistics() == {"held": 0, "files": 0, "undeleted": 0}


async def test_what_the_workload_writes_is_in_the_log(world: FirecrackerWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        log = daemon.site.instance_folder(daemon.fleet.get("src").record.id) / OUTPUT_FILE
        with anyio.fail_after(30):
            while not log.exists() or log.read_bytes() != BEGUN:
                await anyio.lowlevel.checkpoint()


async def test_children_are_themselves_and_have_what_their_source_had(world: FirecrackerWorld) -> None:
    names = [f"child{index}" for index in range(BURST)]
    async with world.daemon() as daemon:
        before = world.leftovers()
        await create(daemon)
        outcomes = await daemon.fleet.fork("src", names)
        assert [outcome.error for outcome in outcomes] == [None] * BURST
        for name in ("src", *names):
            await check_warm(daemon, name)
        taps = world.leftovers()["taps"]
        assert len(taps) == BURST + 1
        with netlink.RouteSocket() as route:
            assert {link.name for link in route.links() if link.is_persistent} == taps
        # Each has a disk of its own, and the one they were made from is gone with the last that needed it.
        for name in names:
            await daemon.run(name, "write", "warm", name)
        assert await daemon.run("src", "read", "warm") == "disk"
        assert await daemon.run("child7", "read", "warm") == "child7"
        for name in ("src", *names):
            await daemon.fleet.delete(name)
        assert world.leftovers() == before


async def test_a_sleeper_wakes_with_its_memory_its_disk_and_its_address(world: FirecrackerWorld) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await create(daemon)
        for _ in range(2):  # The second time what differs from the first is stored.
            asleep = await daemon.fleet.standby("src")
            assert asleep.record.state is State.STANDBY
            await settled(world, processes=0, taps=0, admissions=0, journal=0, captures=1)
            assert (await daemon.fleet.restore("src")).record.state is State.RUNNING
            await check_warm(daemon, "src")
        await daemon.fleet.delete("src")
        assert world.leftovers() == before


async def test_guests_run_on_when_the_daemon_leaves_and_comes_back(world: FirecrackerWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        await daemon.fleet.create("asleep", daemon.spec)
        await daemon.fleet.standby("asleep")
        await daemon.fleet.fork("src", ["child"])
        boot_id = (await daemon.memory("src"))["boot_id"]
    async with world.daemon() as daemon:
        assert (await daemon.memory("src"))["boot_id"] == boot_id
        for name in ("src", "child"):
            await check_warm(daemon, name)
        assert (await daemon.fleet.fork("child", ["grandchild"]))[0].error is None
        await check_warm(daemon, "grandchild")
        assert (await daemon.fleet.restore("asleep")).record.state is State.RUNNING
        for name in ("src", "child", "grandchild", "asleep"):
            await daemon.fleet.delete(name)
        await settled(world, processes=0, taps=0, admissions=0, layers=0, folders=0, records=0, journal=0)


async def test_what_ended_without_a_daemon_leaves_no_tap(world: FirecrackerWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
    for pid in world.processes():
        os.kill(pid, 9)
    with anyio.fail_after(30):
        while world.processes():
            await anyio.lowlevel.checkpoint()
    assert len(world.leftovers()["taps"]) == 1
    async with world.daemon() as daemon:
        await settled(world, taps=0, admissions=0)
        assert daemon.fleet.get("src").record.state is State.STOPPED
        assert (await daemon.fleet.start("src")).record.state is State.RUNNING
        assert await daemon.run("src", "read", "warm") == "disk"


@pytest.mark.parametrize("kind", ["fail", "die", "late-die"])
@pytest.mark.parametrize("call", ["PUT /network-interfaces/nic", "PUT /actions"])
async def test_a_failed_boot_leaves_nothing(world: FirecrackerWorld, call: str, kind: Kind) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        world.fail(call, kind)
        with pytest.raises(RametError):
            await daemon.fleet.create("src", daemon.spec)
        assert armed.is_taken(world.failing, kind, call)
        assert world.leftovers() == before
        await create(daemon)


@pytest.mark.parametrize("kind", ["fail", "die", "late-die"])
async def test_a_failed_load_fails_one_child_and_leaves_nothing_of_it(
    world: FirecrackerWorld, kind: Kind
) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        world.fail("PUT /snapshot/load", kind)
        outcomes = await daemon.fleet.fork("src", ["a", "b", "c"])
        failed = [outcome.name for outcome in outcomes if outcome.error is not None]
        assert len(failed) == 1
        assert (await daemon.fleet.fork("src", failed))[0].error is None
        for name in ("src", "a", "b", "c"):
            await check_warm(daemon, name)
        await settled(world, processes=4, taps=4, admissions=4, folders=4, records=4, journal=0, layers=4)


@pytest.mark.parametrize("kind", ["fail", "late-fail"])
@pytest.mark.parametrize("call", ["PATCH /drives/overlay", "PUT /snapshot/create"])
async def test_a_failed_capture_leaves_the_source_as_it_was(
    world: FirecrackerWorld, call: str, kind: Kind
) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        world.fail(call, kind)
        (outcome,) = await daemon.fleet.fork("src", ["child"])
        assert outcome.error is not None
        assert armed.is_taken(world.failing, kind, call)
        await check_warm(daemon, "src")
        await settled(world, processes=1, taps=1, admissions=1, folders=1, records=1, journal=0)
        (outcome,) = await daemon.fleet.fork("src", ["child"])
        assert outcome.error is None
        await check_warm(daemon, "child")


async def test_a_snapshot_is_woken_by_the_version_that_took_it_only(world: FirecrackerWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        await daemon.fleet.standby("src")
    world.version = "1.15.0"
    async with world.daemon() as daemon:
        with pytest.raises(SnapshotIncompatible):
            await daemon.fleet.restore("src")
        assert daemon.fleet.get("src").record.state is State.STANDBY
        await settled(world, processes=0, taps=0, admissions=0)
    world.version = NEWEST
    async with world.daemon() as daemon:
        assert (await daemon.fleet.restore("src")).record.state is State.RUNNING
        await check_warm(daemon, "src")
