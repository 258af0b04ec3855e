"""Real page faults: another process's memory is what the base was."""

import os
import random
from pathlib import Path

import pytest

from ramet.linux.memfd import SealableFile
from ramet.pager import PagerClient, SessionEnd, SessionPhase
from tests.pager.conftest import NewVmm, VmmProcess

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

PAGE_BYTES = 4096
WINDOW_BYTES = 64 * 1024
MIB = 1024 * 1024


def page_content(page: int) -> bytes:
    return bytes([page % 251 + 1]) * PAGE_BYTES


def make_base(folder: Path, page_count: int) -> Path:
    """Write a base each page of which can be told from its neighbours."""
    path = folder / "base"
    path.write_bytes(b"".join(page_content(page) for page in range(page_count)))
    return path


async def serve(
    client: PagerClient, new_vmm: NewVmm, session_id: str, base: Path, size_bytes: int
) -> VmmProcess:
    """Open a session and connect a VMM that has all its memory in one mapping."""
    vmm = await new_vmm(await client.open_session(session_id, base, size_bytes))
    await vmm.ask("map", size=size_bytes)
    await vmm.ask("greet", mappings=[[0, size_bytes, 0]])
    return vmm


async def test_memory_reads_as_the_base(client: PagerClient, new_vmm: NewVmm, folder: Path) -> None:
    content = random.Random(1).randbytes(3 * MIB + 100)  # Ends within a page.
    base = folder / "base"
    base.write_bytes(content)
    vmm = await serve(client, new_vmm, "a", base, 4 * MIB)
    await vmm.ask("touch", page_count=4 * MIB // PAGE_BYTES, threads=8, seed=2)
    assert await vmm.read(0, 4 * MIB) == content.ljust(4 * MIB, b"\0")
    (session,) = (await client.statistics()).sessions
    assert session.phase is SessionPhase.SERVING
    assert session.vmm_pid == vmm.process.pid
    assert session.copied_bytes == 3 * MIB + PAGE_BYTES
    assert session.zeroed_bytes == MIB - PAGE_BYTES
    # A window for each fault; of eight threads several may fault in one window.
    assert 4 * MIB // WINDOW_BYTES <= session.fault_count <= 8 * 4 * MIB // WINDOW_BYTES


async def test_holes_of_a_sealed_base_read_as_zeroes_and_stay_holes(
    client: PagerClient, new_vmm: NewVmm
) -> None:
    base = SealableFile("base", 2 * MIB)
    os.pwrite(base.fd, page_content(1), PAGE_BYTES)
    os.pwrite(base.fd, page_content(300), 300 * PAGE_BYTES)
    base.seal()
    vmm = await serve(client, new_vmm, "a", Path(base.path), 2 * MIB)
    content = await vmm.read(0, 2 * MIB)
    assert content == os.pread(base.fd, 2 * MIB, 0)
    assert content[PAGE_BYTES : 2 * PAGE_BYTES] == page_content(1)
    (session,) = (await client.statistics()).sessions
    assert session.copied_bytes == 2 * PAGE_BYTES
    base.close()


async def test_mappings_may_lie_in_any_order_and_at_any_offset(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    base = make_base(folder, 64)
    vmm = await new_vmm(await client.open_session("a", base, 64 * PAGE_BYTES))
    await vmm.ask("map", size=64 * PAGE_BYTES)
    first, second = [0, 40 * PAGE_BYTES, 24 * PAGE_BYTES], [40 * PAGE_BYTES, 24 * PAGE_BYTES, 0]
    await vmm.ask("greet", mappings=[second, first], pieces=7)
    for page in random.Random(3).sample(range(64), 64):
        expected = page_content(page + 24 if page < 40 else page - 40)
        assert await vmm.read(page * PAGE_BYTES, PAGE_BYTES) == expected, page


async def test_sessions_of_one_base_do_not_see_each_other(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    base = make_base(folder, 32)
    before = base.read_bytes()
    vmms = [await serve(client, new_vmm, f"child-{n}", base, 32 * PAGE_BYTES) for n in range(3)]
    for number, vmm in enumerate(vmms):
        await vmm.write(5 * PAGE_BYTES, bytes([number]) * PAGE_BYTES)
    for number, vmm in enumerate(vmms):
        assert await vmm.read(4 * PAGE_BYTES, PAGE_BYTES) == page_content(4)
        assert await vmm.read(5 * PAGE_BYTES, PAGE_BYTES) == bytes([number]) * PAGE_BYTES
    assert base.read_bytes() == before


async def test_a_removed_range_reads_as_zeroes_from_then_on(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    vmm = await serve(client, new_vmm, "a", make_base(folder, 64), 64 * PAGE_BYTES)
    assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    await vmm.ask("remove", at=2 * PAGE_BYTES, size=PAGE_BYTES)  # It was there.
    await vmm.ask("remove", at=40 * PAGE_BYTES, size=20 * PAGE_BYTES)  # It never was.
    expected = b"".join(
        bytes(PAGE_BYTES) if page == 2 or 40 <= page < 60 else page_content(page) for page in range(64)
    )
    assert await vmm.read(0, 64 * PAGE_BYTES) == expected
    await vmm.write(2 * PAGE_BYTES, b"new")
    assert await vmm.read(2 * PAGE_BYTES, 4) == b"new\0"
    await vmm.ask("remove", at=2 * PAGE_BYTES, size=PAGE_BYTES)
    assert await vmm.read(2 * PAGE_BYTES, 4) == bytes(4)
    (session,) = (await client.statistics()).sessions
    assert session.removed_bytes == 22 * PAGE_BYTES


async def test_removals_while_others_fault_lose_no_fault(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    vmm = await serve(client, new_vmm, "a", make_base(folder, 128), 128 * PAGE_BYTES)
    assert await vmm.ask("churn", page_count=128, rounds=20) == []
    content = await vmm.read(0, 128 * PAGE_BYTES)
    expected = (bytes(PAGE_BYTES) if page % 2 == 0 else page_content(page) for page in range(128))
    assert content == b"".join(expected)


async def test_what_is_left_of_unmapped_memory_is_served(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    vmm = await serve(client, new_vmm, "a", make_base(folder, 64), 64 * PAGE_BYTES)
    await vmm.ask("unmap", at=10 * PAGE_BYTES, size=20 * PAGE_BYTES)
    for page in (9, 30, 0, 63):
        assert await vmm.read(page * PAGE_BYTES, PAGE_BYTES) == page_content(page)


async def test_a_session_ends_with_its_vmm(client: PagerClient, new_vmm: NewVmm, folder: Path) -> None:
    base = make_base(folder, 16)
    vmm = await serve(client, new_vmm, "a", base, 16 * PAGE_BYTES)
    assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    assert await vmm.stop() == 0
    while (statistics := await client.statistics()).sessions:
        pass  # The kernel tells the pager of the exit at about the time it tells us.
    (end,) = statistics.recent_ends
    assert (end.id, end.how, end.reason) == ("a", SessionEnd.VMM_EXITED, "")
    assert statistics.exited_count == 1
    again = await serve(client, new_vmm, "a", base, 16 * PAGE_BYTES)
    assert await again.read(0, PAGE_BYTES) == page_content(0)


async def test_closing_a_session_ends_the_vmm_that_depends_on_it(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    base = make_base(folder, 64)
    vmm = await serve(client, new_vmm, "a", base, 64 * PAGE_BYTES)
    other = await serve(client, new_vmm, "b", base, 64 * PAGE_BYTES)
    assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    assert await client.close_session("a")
    assert await vmm.process.wait() == -9
    assert await other.read(63 * PAGE_BYTES, PAGE_BYTES) == page_content(63)
