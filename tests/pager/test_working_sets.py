"""Working sets: recorded by one restore, there before they are asked for in the next."""

import os
import random
from pathlib import Path

import pytest

from ramet.pager import (
    NoSuchSession,
    NotServing,
    PagerClient,
    PagerSession,
    SessionEnd,
    WorkingSetUse,
)
from tests.pager.conftest import NewVmm, VmmProcess
from tests.pager.test_faults import PAGE_BYTES, make_base, page_content

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

PAGE_COUNT = 512
SIZE_BYTES = PAGE_COUNT * PAGE_BYTES
TOUCHED = sorted(random.Random(7).sample(range(PAGE_COUNT), 90))


@pytest.fixture
def base(folder: Path) -> Path:
    return make_base(folder, PAGE_COUNT)


async def restore(
    client: PagerClient,
    new_vmm: NewVmm,
    session_id: str,
    base: Path,
    working_set: WorkingSetUse = WorkingSetUse.AUTO,
    mappings: list[list[int]] | None = None,
) -> VmmProcess:
    path = await client.open_session(session_id, base, SIZE_BYTES, working_set=working_set)
    vmm = await new_vmm(path)
    await vmm.ask("map", size=SIZE_BYTES)
    await vmm.ask("greet", mappings=mappings or [[0, SIZE_BYTES, 0]])
    return vmm


async def session_of(client: PagerClient, session_id: str) -> PagerSession:
    (found,) = (s for s in (await client.statistics()).sessions if s.id == session_id)
    return found


async def record(client: PagerClient, new_vmm: NewVmm, session_id: str, base: Path) -> VmmProcess:
    vmm = await restore(client, new_vmm, session_id, base)
    assert (await session_of(client, session_id)).is_recording
    await vmm.ask("touch_pages", pages=random.Random(1).sample(TOUCHED, len(TOUCHED)))
    assert await client.ready_session(session_id) == len(TOUCHED)
    return vmm


async def wait_replayed(client: PagerClient, session_id: str, size_bytes: int) -> PagerSession:
    while (session := await session_of(client, session_id)).replayed_bytes < size_bytes:
        pass
    return session


async def test_what_one_guest_touched_is_there_for_the_next(
    client: PagerClient, new_vmm: NewVmm, base: Path
) -> None:
    first = await record(client, new_vmm, "first", base)
    assert await first.ask("present", page_count=PAGE_COUNT) == TOUCHED  # Exactly, without neighbours.
    second = await restore(client, new_vmm, "second", base)
    session = await wait_replayed(client, "second", len(TOUCHED) * PAGE_BYTES)
    assert session.replayed_bytes == session.copied_bytes == len(TOUCHED) * PAGE_BYTES
    assert session.fault_count == 0
    assert await second.ask("present", page_count=PAGE_COUNT) == TOUCHED
    for vmm in (first, second):
        assert await vmm.read(0, SIZE_BYTES) == base.read_bytes()
    statistics = await client.statistics()
    assert (statistics.working_set_count, statistics.working_set_bytes > 0) == (1, True)


async def test_after_it_is_ready_a_guest_is_answered_in_windows(
    client: PagerClient, new_vmm: NewVmm, base: Path
) -> None:
    vmm = await record(client, new_vmm, "a", base)
    window = next(w for w in range(PAGE_COUNT // 16) if not set(range(w * 16, w * 16 + 16)) & set(TOUCHED))
    await vmm.ask("touch_pages", pages=[window * 16 + 3])
    present = await vmm.ask("present", page_count=PAGE_COUNT)
    assert present == sorted([*TOUCHED, *range(window * 16, window * 16 + 16)])
    assert not (await session_of(client, "a")).is_recording
    assert await client.ready_session("a") == 0


async def test_one_records_while_others_of_its_base_do_not_wait(
    client: PagerClient, new_vmm: NewVmm, base: Path
) -> None:
    await restore(client, new_vmm, "first", base)
    second = await restore(client, new_vmm, "second", base)
    assert not (await session_of(client, "second")).is_recording
    assert await second.read(0, SIZE_BYTES) == base.read_bytes()
    # One that ends before it is ready leaves nothing; the next records again.
    await client.close_session("first")
    await restore(client, new_vmm, "third", base)
    assert (await session_of(client, "third")).is_recording


async def test_a_set_is_the_bases_and_can_be_recorded_anew(
    client: PagerClient, new_vmm: NewVmm, base: Path, folder: Path
) -> None:
    await record(client, new_vmm, "first", base)
    other = folder / "other"
    other.write_bytes(base.read_bytes())
    await restore(client, new_vmm, "other", other)
    assert (await session_of(client, "other")).is_recording
    link = folder / "link"
    link.hardlink_to(base)  # The same content, as a fork names it.
    again = await restore(client, new_vmm, "again", link, WorkingSetUse.RECORD)
    await again.ask("touch_pages", pages=[5])
    assert await client.ready_session("again") == 1
    last = await restore(client, new_vmm, "last", base)
    await wait_replayed(client, "last", PAGE_BYTES)
    assert await last.ask("present", page_count=PAGE_COUNT) == [5]


async def test_a_set_is_replayed_wherever_the_memory_lies(
    client: PagerClient, new_vmm: NewVmm, base: Path
) -> None:
    await record(client, new_vmm, "first", base)
    at = 200 * PAGE_BYTES
    mappings = [[at, SIZE_BYTES - at, 0], [0, at, SIZE_BYTES - at]]
    vmm = await restore(client, new_vmm, "moved", base, mappings=mappings)
    await wait_replayed(client, "moved", len(TOUCHED) * PAGE_BYTES)
    moved = sorted((page + 200) % PAGE_COUNT for page in TOUCHED)
    assert await vmm.ask("present", page_count=PAGE_COUNT) == moved
    for page in moved:
        assert await vmm.read(page * PAGE_BYTES, PAGE_BYTES) == page_content((page - 200) % PAGE_COUNT)


async def test_a_replay_that_cannot_be_read_leaves_the_session_serving(
    client: PagerClient, new_vmm: NewVmm, base: Path
) -> None:
    vmm = await restore(client, new_vmm, "first", base)
    await vmm.ask("touch_pages", pages=[0, 400])
    await client.ready_session("first")
    facts = base.stat()
    path = await client.open_session("second", base, SIZE_BYTES, working_set=WorkingSetUse.AUTO)
    os.truncate(base, 100 * PAGE_BYTES)
    second = await new_vmm(path)
    await second.ask("map", size=SIZE_BYTES)
    await second.ask("greet", mappings=[[0, SIZE_BYTES, 0]])
    assert await second.read(50 * PAGE_BYTES, PAGE_BYTES) == page_content(50)
    assert facts.st_size == SIZE_BYTES
    with pytest.raises(EOFError):
        await second.read(400 * PAGE_BYTES, PAGE_BYTES)
    while (statistics := await client.statistics()).failed_count == 0:
        pass
    assert [end.how for end in statistics.recent_ends if end.id == "second"] == [SessionEnd.FAILED]


async def test_only_who_serves_can_be_ready(client: PagerClient, base: Path) -> None:
    with pytest.raises(NoSuchSession):
        await client.ready_session("a")
    await client.open_session("a", base, SIZE_BYTES, working_set=WorkingSetUse.RECORD)
    with pytest.raises(NotServing):
        await client.ready_session("a")
