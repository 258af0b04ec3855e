"""Overlay pages: one session sees a page that its base does not have."""

import os
from pathlib import Path

import pytest

from ramet.pager import OverlayUnusable, PagerClient, PagerRequestInvalid
from tests.pager.conftest import NewVmm, VmmProcess
from tests.pager.test_faults import PAGE_BYTES, make_base, page_content, serve

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

PAGE_COUNT = 48
SIZE_BYTES = PAGE_COUNT * PAGE_BYTES


@pytest.fixture
def base(folder: Path) -> Path:
    return make_base(folder, PAGE_COUNT)


def write_page(folder: Path, number: int) -> Path:
    path = folder / f"page-{number}"
    path.write_bytes(bytes([number]) * PAGE_BYTES)
    return path


async def serve_overlaid(
    client: PagerClient, new_vmm: NewVmm, session_id: str, base: Path, overlays: dict[int, Path]
) -> VmmProcess:
    vmm = await new_vmm(await client.open_session(session_id, base, SIZE_BYTES, overlays=overlays))
    await vmm.ask("map", size=SIZE_BYTES)
    await vmm.ask("greet", mappings=[[0, SIZE_BYTES, 0]])
    return vmm


async def test_each_session_sees_its_own_pages_and_the_base_stays(
    client: PagerClient, new_vmm: NewVmm, base: Path, folder: Path
) -> None:
    before = base.read_bytes()
    pages = [3, 4, 40]
    vmms = []
    for number in (201, 202):
        overlays = {page * PAGE_BYTES: write_page(folder, number) for page in pages}
        vmms.append((number, await serve_overlaid(client, new_vmm, f"s{number}", base, overlays)))
        (folder / f"page-{number}").unlink()  # It has been read.
    plain = await serve(client, new_vmm, "plain", base, SIZE_BYTES)
    for number, vmm in vmms:
        expected = (
            bytes([number]) * PAGE_BYTES if page in pages else page_content(page)
            for page in range(PAGE_COUNT)
        )
        assert await vmm.read(0, SIZE_BYTES) == b"".join(expected)
    assert await plain.read(0, SIZE_BYTES) == before == base.read_bytes()
    told = {session.id: session.overlaid_bytes for session in (await client.statistics()).sessions}
    assert told == {"s201": 3 * PAGE_BYTES, "s202": 3 * PAGE_BYTES, "plain": 0}


async def test_an_overlay_page_is_gone_when_it_is_removed(
    client: PagerClient, new_vmm: NewVmm, base: Path, folder: Path
) -> None:
    overlays = {5 * PAGE_BYTES: write_page(folder, 200), 6 * PAGE_BYTES: write_page(folder, 201)}
    vmm = await serve_overlaid(client, new_vmm, "a", base, overlays)
    await vmm.ask("remove", at=5 * PAGE_BYTES, size=PAGE_BYTES)
    assert await vmm.read(5 * PAGE_BYTES, PAGE_BYTES) == bytes(PAGE_BYTES)
    assert await vmm.read(6 * PAGE_BYTES, PAGE_BYTES) == bytes([201]) * PAGE_BYTES


async def test_a_page_may_be_where_the_base_has_a_hole_or_ends(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    base = folder / "short"
    base.write_bytes(page_content(0))
    vmm = await serve_overlaid(client, new_vmm, "a", base, {20 * PAGE_BYTES: write_page(folder, 200)})
    assert await vmm.read(20 * PAGE_BYTES, PAGE_BYTES) == bytes([200]) * PAGE_BYTES
    assert await vmm.read(21 * PAGE_BYTES, PAGE_BYTES) == bytes(PAGE_BYTES)


@pytest.mark.parametrize("size_bytes", [0, PAGE_BYTES - 1, PAGE_BYTES + 1, None])
async def test_what_is_no_page_is_refused(
    client: PagerClient, base: Path, folder: Path, size_bytes: int | None
) -> None:
    path = folder / "page"
    if size_bytes is not None:
        path.write_bytes(bytes(size_bytes))
    with pytest.raises(OverlayUnusable):
        await client.open_session("a", base, SIZE_BYTES, overlays={0: path})
    assert (await client.health()).session_count == 0


@pytest.mark.parametrize("offset", [1, SIZE_BYTES])
async def test_a_place_outside_the_pages_is_refused(
    client: PagerClient, base: Path, folder: Path, offset: int
) -> None:
    with pytest.raises(PagerRequestInvalid):
        await client.open_session("a", base, SIZE_BYTES, overlays={offset: write_page(folder, 1)})
