"""A daemon's pager: there as long as the daemon is, and what follows when it ends."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ramet.linux.userfault import awaits_pages
from ramet.pager import (
    NoSuchSession,
    PagerClient,
    PagerService,
    PagerSupervisor,
    PagerUnreachable,
    SessionEnd,
    SessionPhase,
    pack,
)
from ramet.pager.graduation import GraduationConfig
from tests.pager.conftest import NewVmm, VmmProcess
from tests.pager.test_faults import PAGE_BYTES, make_base, page_content
from tests.waiting import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

PAGE_COUNT = 64
SIZE_BYTES = PAGE_COUNT * PAGE_BYTES


@dataclass
class Daemon:
    """One daemon's service after another, on one folder; `told` is what each asked to be ended without."""

    folder: Path
    program: Path
    told: list[frozenset[int]] = field(default_factory=list)

    def service(self, graduation: GraduationConfig | None = None) -> PagerService:
        return PagerService(self.folder, self.program, self.end_stranded, None, graduation, retry_s=0.01)

    async def end_stranded(self, served: frozenset[int]) -> None:
        self.told.append(served)

    @asynccontextmanager
    async def running(self, graduation: GraduationConfig | None = None) -> AsyncIterator[PagerService]:
        service = self.service(graduation)
        await service.start()
        async with anyio.create_task_group() as group:
            group.start_soon(service.run)
            yield service
            group.cancel_scope.cancel()

    @property
    def client(self) -> PagerClient:
        (own,) = self.folder.iterdir()
        return PagerClient(own / "control.sock")

    async def kill(self) -> None:
        os.kill((await self.client.health()).pid, signal.SIGKILL)


@pytest.fixture
async def daemon(folder: Path, program: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(folder / "pagers", program)
    yield daemon
    if daemon.folder.is_dir():
        await daemon.kill()


async def load(
    service: PagerService,
    new_vmm: NewVmm,
    base: Path,
    session: str = "guest",
    *,
    is_packed: bool = False,
    is_learned: bool = False,
) -> VmmProcess:
    path = await service.open_session(session, base, SIZE_BYTES, is_packed=is_packed, is_learned=is_learned)
    vmm = await new_vmm(path)
    await vmm.ask("map", size=SIZE_BYTES)
    await vmm.ask("greet", mappings=[[0, SIZE_BYTES, 0]])
    return vmm


async def test_a_guest_goes_on_being_served_when_its_daemon_ends(
    daemon: Daemon, folder: Path, new_vmm: NewVmm
) -> None:
    async with daemon.running() as service:
        vmm = await load(service, new_vmm, make_base(folder, PAGE_COUNT))
        assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    assert not service.is_there
    assert await vmm.read(9 * PAGE_BYTES, PAGE_BYTES) == page_content(9)
    async with daemon.running() as again:
        assert again.is_there
        assert daemon.told == [frozenset(), {vmm.process.pid}]
        assert await vmm.read(33 * PAGE_BYTES, PAGE_BYTES) == page_content(33)
        await again.close_session("guest")
    assert await vmm.process.wait() == -signal.SIGKILL


async def test_packed_memory_is_served(daemon: Daemon, folder: Path, new_vmm: NewVmm) -> None:
    pack(make_base(folder, PAGE_COUNT), folder / "packed")
    async with daemon.running() as service:
        vmm = await load(service, new_vmm, folder / "packed", is_packed=True)
        for page in range(PAGE_COUNT):
            assert await vmm.read(page * PAGE_BYTES, PAGE_BYTES) == page_content(page)


async def test_what_the_first_guest_touches_is_there_for_the_next(
    daemon: Daemon, folder: Path, new_vmm: NewVmm
) -> None:
    base = make_base(folder, PAGE_COUNT)
    async with daemon.running() as service:
        first = await load(service, new_vmm, base, "first", is_learned=True)
        await first.read(7 * PAGE_BYTES, PAGE_BYTES)
        await service.ready_session("first")
        await load(service, new_vmm, base, "second", is_learned=True)
        await load(service, new_vmm, base, "third")
        ahead = {each.id: each.replayed_bytes for each in (await daemon.client.statistics()).sessions}
        with anyio.fail_after(20):
            while not ahead["second"]:
                ahead = {each.id: each.replayed_bytes for each in (await daemon.client.statistics()).sessions}
        assert ahead == {"first": 0, "second": PAGE_BYTES, "third": 0}


async def test_when_a_pager_ends_its_guests_are_stranded_and_another_is_started(
    daemon: Daemon, folder: Path, new_vmm: NewVmm
) -> None:
    async with daemon.running() as service:
        vmm = await load(service, new_vmm, make_base(folder, PAGE_COUNT))
        pid = vmm.process.pid
        assert awaits_pages(pid)
        daemon.told.clear()
        await daemon.kill()
        await until(lambda: bool(daemon.told))
        assert pid not in daemon.told[0]
        assert awaits_pages(pid)
        await until(lambda: service.is_there)
        other = await load(service, new_vmm, make_base(folder, PAGE_COUNT))
        assert await other.read(0, PAGE_BYTES) == page_content(0)


async def test_a_session_whose_guest_never_came_goes_with_the_next_daemon(
    daemon: Daemon, folder: Path, new_vmm: NewVmm
) -> None:
    base = make_base(folder, PAGE_COUNT)
    async with daemon.running() as service:
        await load(service, new_vmm, base)
        await service.open_session("lost", base, SIZE_BYTES, is_packed=False, is_learned=False)
    async with daemon.running():
        (left,) = (await daemon.client.statistics()).sessions
        assert (left.id, left.phase) == ("guest", SessionPhase.SERVING)


async def test_graduation_makes_guests_independent(daemon: Daemon, folder: Path, new_vmm: NewVmm) -> None:
    soon = GraduationConfig(min_session_age_s=0, scan_interval_s=0.01)
    async with daemon.running(soon) as service:
        vmm = await load(service, new_vmm, make_base(folder, PAGE_COUNT))
        with anyio.fail_after(20):
            while (await daemon.client.statistics()).completed_count == 0:
                await anyio.lowlevel.checkpoint()
        assert not awaits_pages(vmm.process.pid)
        daemon.told.clear()
        await daemon.kill()
        await until(lambda: bool(daemon.told) and service.is_there)
        assert await vmm.read(5 * PAGE_BYTES, PAGE_BYTES) == page_content(5)


async def test_where_no_pager_is_wanted_guests_are_given_all_and_the_pager_ends(
    daemon: Daemon, folder: Path, new_vmm: NewVmm
) -> None:
    await daemon.service().retire()
    assert not daemon.folder.exists()
    async with daemon.running() as service:
        vmm = await load(service, new_vmm, make_base(folder, PAGE_COUNT))
    await daemon.service().retire()
    await until(lambda: not PagerSupervisor(daemon.folder, daemon.program).clients())
    assert not awaits_pages(vmm.process.pid)
    assert await vmm.read(5 * PAGE_BYTES, PAGE_BYTES) == page_content(5)
    async with daemon.running() as service:  # Wanted again.
        assert service.is_there


async def test_without_a_pager_that_starts_there_are_no_sessions_until_there_is_one(
    daemon: Daemon, folder: Path, program: Path
) -> None:
    daemon.program = folder / "program"
    async with daemon.running() as service:
        assert not service.is_there
        with pytest.raises(PagerUnreachable):
            await service.open_session("x", folder, PAGE_BYTES, is_packed=False, is_learned=False)
        daemon.program.symlink_to(program)
        await until(lambda: service.is_there)


async def test_a_session_that_has_ended_cannot_become_ready(
    daemon: Daemon, folder: Path, new_vmm: NewVmm
) -> None:
    async with daemon.running() as service:
        vmm = await load(service, new_vmm, make_base(folder, PAGE_COUNT))
        await vmm.stop()
        with anyio.fail_after(20):
            while (await daemon.client.statistics()).sessions:
                await anyio.lowlevel.checkpoint()
        assert (await daemon.client.statistics()).recent_ends[-1].how is SessionEnd.VMM_EXITED
        with pytest.raises(NoSuchSession):
            await service.ready_session("guest")


def test_who_waits_for_nobody_awaits_no_pages() -> None:
    assert not awaits_pages(os.getpid())
