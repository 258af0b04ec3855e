"""A daemon whose instances run on Firecracker or Cloud Hypervisor: strict fakes behind the real drivers."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ramet.core.errors import RametError
from ramet.core.spec import State
from ramet.effects.output import OUTPUT_FILE
from ramet.linux import netlink
from ramet.vmm.port import SnapshotIncompatible
from tests.effects.rest_world import (
    CloudHypervisorWorld,
    FirecrackerWorld,
    RestWorld,
    check_warm,
    create,
    settled,
)
from tests.effects.world import Daemon, new_folder
from tests.vmm.fake_firecracker import faults as armed
from tests.vmm.fake_firecracker.faults import Kind

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

BURST = 25
BEGUN = b"the workload has begun\n"
WORLDS: tuple[type[RestWorld], ...] = (FirecrackerWorld, CloudHypervisorWorld)


def name_of(kind: type[RestWorld]) -> str:
    return kind.program.name


def calls(which: str, *kinds: Kind) -> pytest.MarkDecorator:
    """Have a test run with each call of that part, of each VMM, and each kind of failure."""
    cases = [
        pytest.param(kind, call, failure, id=f"{name_of(kind)}-{call.partition(' ')[2]}-{failure}")
        for kind in WORLDS
        for call in getattr(kind, f"{which}_calls")
        for failure in kinds
    ]
    return pytest.mark.parametrize(("world", "call", "failure"), cases, indirect=["world"])


@pytest.fixture(params=WORLDS, ids=name_of)
async def world(request: pytest.FixtureRequest, images: Path) -> AsyncIterator[RestWorld]:
    world: RestWorld = request.param(new_folder(), images)
    yield world
    await world.aclose()


async def test_a_life_from_create_to_delete_leaves_nothing(world: RestWorld) -> None:
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


async def test_what_the_workload_writes_is_in_the_log(world: RestWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        log = daemon.site.instance_folder(daemon.fleet.get("src").record.id) / OUTPUT_FILE
        with anyio.fail_after(30):
            while not log.exists() or log.read_bytes() != BEGUN:
                await anyio.lowlevel.checkpoint()


async def test_children_are_themselves_and_have_what_their_source_had(world: RestWorld) -> None:
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
            persistent = {link.name for link in route.links() if link.is_persistent}
            assert persistent == (taps if world.opens_taps else set())
        # Each has a disk of its own, and the one they were made from is gone with the last that needed it.
        for name in names:
            await daemon.run(name, "write", "warm", name)
        assert await daemon.run("src", "read", "warm") == "disk"
        assert await daemon.run("child7", "read", "warm") == "child7"
        for name in ("src", *names):
            await daemon.fleet.delete(name)
        assert world.leftovers() == before


async def test_a_sleeper_wakes_with_its_memory_its_disk_and_its_address(world: RestWorld) -> None:
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


async def test_guests_run_on_when_the_daemon_leaves_and_comes_back(world: RestWorld) -> None:
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


async def test_what_ended_without_a_daemon_leaves_no_tap(world: RestWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
    for pid in world.processes():
        os.kill(pid, 9)
    with anyio.fail_after(30):
        while world.processes():
            await anyio.lowlevel.checkpoint()
    assert len(world.leftovers()["taps"]) == (1 if world.opens_taps else 0)
    async with world.daemon() as daemon:
        await settled(world, taps=0, admissions=0)
        assert daemon.fleet.get("src").record.state is State.STOPPED
        assert (await daemon.fleet.start("src")).record.state is State.RUNNING
        assert await daemon.run("src", "read", "warm") == "disk"


@calls("boot", "fail", "die", "late-die")
async def test_a_failed_boot_leaves_nothing(world: RestWorld, call: str, failure: Kind) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        world.fail(call, failure)
        with pytest.raises(RametError):
            await daemon.fleet.create("src", daemon.spec)
        assert armed.is_taken(world.failing, failure, call)
        assert world.leftovers() == before
        await create(daemon)


@calls("child", "fail", "die", "late-die")
async def test_a_failed_load_fails_one_child_and_leaves_nothing_of_it(
    world: RestWorld, call: str, failure: Kind
) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        world.fail(call, failure)
        outcomes = await daemon.fleet.fork("src", ["a", "b", "c"])
        failed = [outcome.name for outcome in outcomes if outcome.error is not None]
        assert len(failed) == 1
        assert (await daemon.fleet.fork("src", failed))[0].error is None
        for name in ("src", "a", "b", "c"):
            await check_warm(daemon, name)
        await settled(world, processes=4, taps=4, admissions=4, folders=4, records=4, journal=0, layers=4)


@calls("capture", "fail", "late-fail")
async def test_a_failed_capture_leaves_the_source_as_it_was(
    world: RestWorld, call: str, failure: Kind
) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        world.fail(call, failure)
        (outcome,) = await daemon.fleet.fork("src", ["child"])
        assert outcome.error is not None
        assert armed.is_taken(world.failing, failure, call)
        await check_warm(daemon, "src")
        await settled(world, processes=1, taps=1, admissions=1, folders=1, records=1, journal=0)
        (outcome,) = await daemon.fleet.fork("src", ["child"])
        assert outcome.error is None
        await check_warm(daemon, "child")


async def test_a_snapshot_is_woken_by_the_version_that_took_it_only(world: RestWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        await daemon.fleet.standby("src")
    world.version = world.older
    async with world.daemon() as daemon:
        with pytest.raises(SnapshotIncompatible):
            await daemon.fleet.restore("src")
        assert daemon.fleet.get("src").record.state is State.STANDBY
        await settled(world, processes=0, taps=0, admissions=0)
    world.version = world.newest
    async with world.daemon() as daemon:
        assert (await daemon.fleet.restore("src")).record.state is State.RUNNING
        await check_warm(daemon, "src")


# One that hangs


async def check_others(daemon: Daemon, names: list[str]) -> None:
    """All that may be asked of these, and of all together, is answered."""
    assert {view.record.name for view in daemon.fleet.list()} >= set(names)
    for name in names:
        assert daemon.fleet.get(name).record.state is State.RUNNING
        assert await daemon.run(name, "echo", name) == f"{name}\n"
        assert await daemon.is_well(name)


@calls("load", "hang")
async def test_one_that_hangs_in_its_load_holds_up_neither_the_others_nor_any_read(
    world: RestWorld, call: str, failure: Kind
) -> None:
    names = [f"child{index}" for index in range(BURST)]
    failed: dict[str, RametError] = {}

    async def restore(name: str) -> None:
        try:
            await daemon.fleet.restore(name)
        except RametError as error:
            failed[name] = error

    def running() -> set[str]:
        return {each.record.name for each in daemon.fleet.list() if each.record.state is State.RUNNING}

    async with world.daemon() as daemon:
        await create(daemon)
        assert [made.error for made in await daemon.fleet.fork("src", names)] == [None] * BURST
        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(daemon.fleet.standby, name)
        world.fail(call, failure)
        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(restore, name)
            await world.wait_taken(call, failure)
            with anyio.fail_after(60):
                while len(running()) < BURST:  # Among them their source.
                    await check_others(daemon, ["src"])
            (stuck,) = set(names) - running()
            await check_others(daemon, sorted(running()))
            assert daemon.fleet.get(stuck).record.state is not State.RUNNING
            assert not failed
            os.kill(world.pid_of(daemon.fleet.get(stuck).record.id), 9)
        assert failed.keys() == {stuck}
        assert daemon.fleet.get(stuck).record.state is State.STANDBY
        assert (await daemon.fleet.restore(stuck)).record.state is State.RUNNING
        for name in names:
            assert await daemon.run(name, "read", "warm") == "disk"


@calls("boot", "hang")
async def test_one_that_hangs_in_its_boot_holds_up_nobody(world: RestWorld, call: str, failure: Kind) -> None:
    async def fail_to_create() -> None:
        with pytest.raises(RametError):
            await daemon.fleet.create("stuck", daemon.spec)

    async with world.daemon() as daemon:
        await create(daemon)
        world.fail(call, failure)
        async with anyio.create_task_group() as group:
            group.start_soon(fail_to_create)
            await world.wait_taken(call, failure)
            with anyio.fail_after(60):
                await daemon.fleet.create("other", daemon.spec)
                assert (await daemon.fleet.fork("src", ["child"]))[0].error is None
                await check_others(daemon, ["src", "other", "child"])
                await daemon.fleet.standby("other")
                await daemon.fleet.restore("other")
                await daemon.fleet.delete("child")
            os.kill(world.pid_of(daemon.fleet.get("stuck").record.id), 9)
        await settled(world, processes=2, taps=2)


@calls("capture", "hang")
async def test_a_source_that_hangs_in_its_capture_holds_up_nobody_else(
    world: RestWorld, call: str, failure: Kind
) -> None:
    outcomes = []

    async def fork() -> None:
        outcomes.extend(await daemon.fleet.fork("stuck", ["never"]))

    async with world.daemon() as daemon:
        await create(daemon)
        await daemon.fleet.create("stuck", daemon.spec)
        world.fail(call, failure)
        async with anyio.create_task_group() as group:
            group.start_soon(fork)
            await world.wait_taken(call, failure)
            with anyio.fail_after(60):
                await daemon.fleet.create("other", daemon.spec)
                assert (await daemon.fleet.fork("src", ["child"]))[0].error is None
                await check_others(daemon, ["src", "other", "child"])
                await daemon.fleet.standby("other")
                await daemon.fleet.restore("other")
                await daemon.fleet.delete("child")
                assert daemon.fleet.get("stuck").record.state is State.RUNNING
            assert not outcomes
            os.kill(world.pid_of(daemon.fleet.get("stuck").record.id), 9)
        assert outcomes[0].error is not None
        await settled(world, processes=2, taps=2)
