"""A daemon whose Firecrackers are served by the pager: it wakes them from memory that stays packed."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ramet.boot.locate import PAGER_PROGRAM, native_program
from ramet.core.compression import Compression, CompressionAsk
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import State
from ramet.daemon.stranded import end_stranded
from ramet.linux.userfault import awaits_pages
from ramet.pager import PagerClient, PagerService
from ramet.store.paths import DataFolder
from ramet.vmm.fake.faults import Faults
from ramet.vmm.firecracker.driver import FirecrackerDriver
from ramet.vmm.jail import JailConfig, JailMode
from ramet.vmm.port import Driver
from tests.effects.rest_world import FirecrackerWorld, check_warm, create, settled
from tests.effects.test_compression import compressed
from tests.effects.world import Daemon, new_folder
from tests.vmm.firecracker_bench import PROGRAM
from tests.vmm.test_firecracker_pager import client_at

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

PACKED = CompressionAsk(Compression.of(), is_said=True)
BURST = 25


class PagedWorld(FirecrackerWorld):
    """A host with a fake Firecracker, and a pager."""

    def __init__(self, folder: Path, images: Path, pager_program: Path) -> None:
        super().__init__(folder, images)
        self.drivers: list[Driver] = []
        self.pager = PagerService(folder / "pagers", pager_program, self._end_stranded, retry_s=0.01)

    async def _end_stranded(self, served: frozenset[int]) -> None:
        await end_stranded(self.drivers, served)

    def open_driver(self, data: DataFolder, faults: Faults) -> Driver:
        driver = FirecrackerDriver.open(
            data.instances, pager=self.pager, program=PROGRAM, jail=JailConfig(JailMode.OFF)
        )
        self.drivers = [driver]
        return driver

    @property
    def client(self) -> PagerClient:
        return client_at(self.folder / "pagers")

    async def kill_pager(self) -> None:
        os.kill((await self.client.health()).pid, signal.SIGKILL)


@pytest.fixture
async def world(images: Path) -> AsyncIterator[PagedWorld]:
    world = PagedWorld(new_folder(), images, native_program(PAGER_PROGRAM))
    await world.pager.start()
    async with anyio.create_task_group() as group:
        group.start_soon(world.pager.run)
        yield world
        group.cancel_scope.cancel()
    await world.kill_pager()
    await world.aclose()


async def sleep_packed(daemon: Daemon, name: str = "src") -> Path:
    """Have an instance sleep; returns its memory when it is packed, and there is no other."""
    capture = (await daemon.fleet.standby(name, PACKED)).record.capture
    assert capture is not None
    return await compressed(daemon, capture)


async def serving(world: PagedWorld, count: int) -> None:
    """Return when the pager serves so many guests, from packed memory."""
    with anyio.fail_after(30):
        while len((await world.client.statistics()).sessions) != count:
            await anyio.lowlevel.checkpoint()


async def test_a_sleeper_wakes_from_packed_memory_as_often_as_it_likes(world: PagedWorld) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await create(daemon)
        for _ in range(3):
            packed = await sleep_packed(daemon)
            assert (await daemon.fleet.restore("src")).record.state is State.RUNNING
            await serving(world, 1)
            assert not packed.with_name("unpacked").exists()
            await check_warm(daemon, "src")
        await daemon.fleet.delete("src")
        assert world.leftovers() == before
        await serving(world, 0)


async def test_children_of_a_packed_snapshot_are_served_what_the_first_touched(world: PagedWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        record = await daemon.snapshots.create("src", SnapshotKind.STANDBY, "then", {}, PACKED)
        assert record.point.capture is not None
        await compressed(daemon, record.point.capture)
        assert (await daemon.snapshots.fork("then", ["first"]))[0].error is None
        await check_warm(daemon, "first")
        assert (await world.client.statistics()).working_set_count == 1
        names = [f"child{index}" for index in range(BURST)]
        assert [outcome.error for outcome in await daemon.snapshots.fork("then", names)] == [None] * BURST
        for name in names:
            await check_warm(daemon, name)
        sessions = (await world.client.statistics()).sessions
        assert len(sessions) == BURST + 1
        assert sum(bool(session.replayed_bytes) for session in sessions) == BURST


async def test_served_guests_run_on_when_the_daemon_leaves_and_comes_back(world: PagedWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        await sleep_packed(daemon)
        await daemon.fleet.restore("src")
    async with world.daemon() as daemon:
        await check_warm(daemon, "src")
        await sleep_packed(daemon)
        await daemon.fleet.restore("src")
        await check_warm(daemon, "src")


async def test_guests_whose_pager_ends_end_with_it_and_can_be_started_again(world: PagedWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        await daemon.fleet.create("mapped", daemon.spec)
        await sleep_packed(daemon)
        await daemon.fleet.restore("src")
        assert sum(awaits_pages(pid) for pid in world.processes()) == 1
        await world.kill_pager()
        await settled(world, processes=1)
        with anyio.fail_after(30):
            while daemon.fleet.get("src").record.state is not State.STOPPED or not world.pager.is_there:
                await anyio.lowlevel.checkpoint()
        assert await daemon.is_well("mapped")
        assert (await daemon.fleet.start("src")).record.state is State.RUNNING
        assert await daemon.run("src", "read", "warm") == "disk"
        await daemon.run("src", "set", "warm", "memory")
        await sleep_packed(daemon)
        await daemon.fleet.restore("src")
        await serving(world, 1)
        await check_warm(daemon, "src")


async def test_a_pager_that_ended_while_there_was_no_daemon(world: PagedWorld) -> None:
    async with world.daemon() as daemon:
        await create(daemon)
        await sleep_packed(daemon)
        await daemon.fleet.restore("src")
    await world.kill_pager()
    await settled(world, processes=0)
    async with world.daemon() as daemon:
        await settled(world, taps=0, admissions=0)
        assert daemon.fleet.get("src").record.state is State.STOPPED


async def test_without_a_pager_memory_is_unpacked(images: Path) -> None:
    folder = new_folder()
    world = PagedWorld(folder, images, folder / "no-program")
    async with world.daemon() as daemon:
        await create(daemon)
        await sleep_packed(daemon)
        assert (await daemon.fleet.restore("src")).record.state is State.RUNNING
        await check_warm(daemon, "src")
        assert not any(awaits_pages(pid) for pid in world.processes())
    await world.aclose()
