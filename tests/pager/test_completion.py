"""Graduation: all memory is filled, then the kernel serves it alone."""

import asyncio
import os
from pathlib import Path

import pytest

from ramet.pager import (
    CompletionFailed,
    NoSuchSession,
    NotServing,
    PagerClient,
    PagerSupervisor,
    PagerUnreachable,
    SessionEnd,
)
from tests.pager.conftest import NewVmm
from tests.pager.test_faults import MIB, PAGE_BYTES, make_base, page_content, serve

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

PAGE_COUNT = 2048
SIZE_BYTES = PAGE_COUNT * PAGE_BYTES


@pytest.fixture
def base(folder: Path) -> Path:
    return make_base(folder, PAGE_COUNT)


async def test_a_completed_guest_needs_no_pager(
    client: PagerClient, new_vmm: NewVmm, base: Path, supervisor: PagerSupervisor
) -> None:
    vmm = await serve(client, new_vmm, "a", base, 2 * SIZE_BYTES)  # Zeroes behind the base's end.
    await vmm.write(7 * PAGE_BYTES, b"own")
    await vmm.ask("remove", at=9 * PAGE_BYTES, size=PAGE_BYTES)
    await client.complete_session("a")
    statistics = await client.statistics()
    assert (statistics.completed_count, statistics.sessions) == (1, ())
    assert [(end.id, end.how) for end in statistics.recent_ends] == [("a", SessionEnd.COMPLETED)]
    assert await vmm.ask("wait_hung_up")
    await client.drain()
    await supervisor.wait_exited()
    content = bytearray(base.read_bytes())
    content[7 * PAGE_BYTES : 7 * PAGE_BYTES + 3] = b"own"
    content[9 * PAGE_BYTES : 10 * PAGE_BYTES] = bytes(PAGE_BYTES)
    assert await vmm.read(0, 2 * SIZE_BYTES) == bytes(content).ljust(2 * SIZE_BYTES, b"\0")
    await vmm.ask("remove", at=0, size=PAGE_BYTES)  # Nobody listens, and nobody is waited for.
    assert await vmm.read(0, PAGE_BYTES) == bytes(PAGE_BYTES)
    assert await vmm.stop() == 0


async def test_memory_is_used_and_given_back_while_it_is_completed(
    client: PagerClient, new_vmm: NewVmm, base: Path
) -> None:
    vmms = [await serve(client, new_vmm, f"s{n}", base, SIZE_BYTES) for n in range(3)]
    churns = [asyncio.ensure_future(vmm.ask("churn", page_count=PAGE_COUNT, rounds=6)) for vmm in vmms]
    await asyncio.gather(*(client.complete_session(f"s{n}") for n in range(3)))
    assert [await churn for churn in churns] == [[], [], []]
    for vmm in vmms:
        content = await vmm.read(0, SIZE_BYTES)
        for page in range(PAGE_COUNT):
            piece = content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
            assert piece == (bytes(PAGE_BYTES) if page % 2 == 0 else page_content(page)), page


async def test_what_cannot_be_filled_leaves_the_session_serving(
    client: PagerClient, new_vmm: NewVmm, base: Path
) -> None:
    vmm = await serve(client, new_vmm, "a", base, SIZE_BYTES)
    assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    os.truncate(base, SIZE_BYTES // 2)
    for _ in range(2):
        with pytest.raises(CompletionFailed, match="cut short"):
            await client.complete_session("a")
    (session,) = (await client.statistics()).sessions
    assert session.copied_bytes == SIZE_BYTES // 2
    await vmm.ask("remove", at=0, size=PAGE_BYTES)  # Removals are still heard.
    assert await vmm.read(0, 2 * PAGE_BYTES) == bytes(PAGE_BYTES) + page_content(1)


async def test_memory_with_holes_in_the_map_is_completed(
    client: PagerClient, new_vmm: NewVmm, base: Path
) -> None:
    vmm = await serve(client, new_vmm, "a", base, SIZE_BYTES)
    await vmm.ask("unmap", at=100 * PAGE_BYTES, size=7 * PAGE_BYTES)
    await client.complete_session("a")
    for page in (99, 107, 2047):
        assert await vmm.read(page * PAGE_BYTES, PAGE_BYTES) == page_content(page)


async def test_a_vmm_that_exits_meanwhile_is_told_of(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    base = folder / "large"
    with base.open("wb") as file:
        file.truncate(2048 * MIB)
    vmm = await serve(client, new_vmm, "a", base, 2048 * MIB)
    waiting = asyncio.ensure_future(client.complete_session("a"))
    while (await client.statistics()).sessions[0].zeroed_bytes == 0:
        pass
    vmm.process.kill()
    with pytest.raises(NoSuchSession, match="vmm_exited"):
        await waiting


async def test_who_stops_waiting_may_ask_again(client: PagerClient, new_vmm: NewVmm, folder: Path) -> None:
    base = folder / "large"
    with base.open("wb") as file:
        file.truncate(256 * MIB)
    vmm = await serve(client, new_vmm, "a", base, 256 * MIB)
    with pytest.raises(PagerUnreachable):
        await client.complete_session("a", timeout_s=0)
    try:
        await client.complete_session("a")
    except NoSuchSession:
        assert (await client.statistics()).completed_count == 1
    assert await vmm.read(255 * MIB, PAGE_BYTES) == bytes(PAGE_BYTES)


async def test_only_who_serves_can_be_completed(client: PagerClient, base: Path) -> None:
    with pytest.raises(NoSuchSession):
        await client.complete_session("a")
    await client.open_session("a", base, SIZE_BYTES)
    with pytest.raises(NotServing):
        await client.complete_session("a")
