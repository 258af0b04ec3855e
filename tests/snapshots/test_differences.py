"""A capture that is a difference is a whole to everybody, and needs nobody to stay."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.core.ids import CaptureId
from ramet.linux.pagemap import PAGE_BYTES, PageRuns
from ramet.snapshots.export_file import runs_of_memory
from ramet.snapshots.store import CaptureBroken, CaptureStore
from ramet.vmm.port import MEMORY_FILE_NAME, CaptureFormat
from tests.snapshots.test_compressor import HOW, is_compressed_alone, running
from tests.snapshots.test_verifier import damaged, flip
from tests.waiting import until

pytestmark = pytest.mark.anyio

MEMORY_BYTES = 4 << 20
FIRST, SECOND = CaptureId("first"), CaptureId("second")
FORMAT = CaptureFormat("fake", "1", 1, "kvm")
BELOW = os.urandom(8 * PAGE_BYTES)
"""The first pages of the base; the rest of it is a hole."""
CHANGES: PageRuns = ((PAGE_BYTES, 2 * PAGE_BYTES), (7 * PAGE_BYTES, 2 * PAGE_BYTES), (2 << 20, PAGE_BYTES))
"""In the base, over its end, and in its hole."""


def changed() -> bytes:
    """Return the memory of the second capture: of each run the first page is zeros, and the rest is not."""
    memory = bytearray(BELOW.ljust(MEMORY_BYTES, b"\0"))
    for offset, length in CHANGES:
        memory[offset : offset + length] = bytes(PAGE_BYTES) + b"!" * (length - PAGE_BYTES)
    return bytes(memory)


async def store_first(store: CaptureStore, keep: Path) -> Path:
    """Store a whole capture, give its memory the name `keep` too, and give the capture up."""
    with store.draft(FIRST, MEMORY_BYTES, "test") as draft:
        mapped, _ = draft.capture.memory.map_for_fill()
        mapped[: len(BELOW)] = BELOW
        draft.capture.format = FORMAT
        await draft.commit()
    async with store.opened(FIRST):
        assert store.link_memory(FIRST, keep)
    store.release(FIRST, "test")
    return keep


async def store_second(store: CaptureStore, base: Path, changes: PageRuns | None = CHANGES) -> Path:
    """Store a capture over `base`; returns its folder."""
    with store.draft(SECOND, MEMORY_BYTES, "test", base) as draft:
        mapped, _ = draft.capture.memory.map_for_fill()
        memory = changed()
        for offset, length in changes or ((0, MEMORY_BYTES),):
            mapped[offset : offset + length] = memory[offset : offset + length]
        draft.capture.format, draft.capture.changes = FORMAT, changes
        await draft.commit()
    return draft.folder


async def whole(store: CaptureStore) -> bytes:
    """Return the memory of the second capture, as a VMM has it that was started from it."""
    async with store.opened(SECOND) as capture:
        memory = bytearray(os.pread(capture.mapped.fd, MEMORY_BYTES, 0))
        for offset, length in capture.changes or ():
            memory[offset : offset + length] = os.pread(capture.memory.fd, length, offset)
        exported = bytearray(MEMORY_BYTES)
        for run in runs_of_memory(capture)():
            exported[run.offset : run.offset + run.length_bytes] = run.read(0, run.length_bytes)
        assert exported == memory
    return bytes(memory)


async def test_it_holds_what_changed_and_shares_the_rest(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    base = await store_first(store, tmp_path.parent / f"{tmp_path.name}.base")
    folder = await store_second(store, base)
    assert (folder / MEMORY_FILE_NAME).samefile(base)
    assert (folder / "changes").stat().st_blocks * 512 == sum(length for _, length in CHANGES)
    assert store.manifest(SECOND).changes == CHANGES
    base.unlink()
    async with running(store):
        await until(lambda: {path.name for path in tmp_path.iterdir()} == {SECOND})
    assert await whole(store) == changed()
    assert (folder / MEMORY_FILE_NAME).read_bytes()[: len(BELOW)] == BELOW


async def test_it_is_a_whole_where_the_driver_says_so(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    base = await store_first(store, tmp_path.parent / f"{tmp_path.name}.base")
    folder = await store_second(store, base, None)
    assert {path.name for path in folder.iterdir()} == {"devices", "manifest.json", MEMORY_FILE_NAME}
    assert not (folder / MEMORY_FILE_NAME).samefile(base)
    assert await whole(store) == changed()


async def test_it_is_compressed_as_a_whole_and_verified_as_one(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    folder = await store_second(store, await store_first(store, tmp_path.parent / f"{tmp_path.name}.base"))
    await store.verify(SECOND)
    flip(folder / "changes", CHANGES[0][0])
    assert damaged(await store.verify(SECOND)) == [(MEMORY_FILE_NAME, 0)]
    flip(folder / "changes", CHANGES[0][0])
    assert damaged(await store.verify(SECOND)) == []
    store.compress(SECOND, HOW)
    async with running(store):
        await until(lambda: is_compressed_alone(folder))
    assert damaged(await store.verify(SECOND)) == []
    assert await whole(store) == changed()
    store = CaptureStore(tmp_path)
    store.hold(SECOND, "test")
    store.sweep()
    assert await whole(store) == changed()


@pytest.mark.parametrize(
    "lose",
    [
        lambda folder: (folder / "changes").unlink(),
        lambda folder: os.truncate(folder / "changes", PAGE_BYTES),
        lambda folder: (folder / MEMORY_FILE_NAME).unlink(),
    ],
)
async def test_without_one_of_its_files_it_is_broken(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    store = CaptureStore(tmp_path)
    folder = await store_second(store, await store_first(store, tmp_path.parent / f"{tmp_path.name}.base"))
    lose(folder)
    with pytest.raises(CaptureBroken):
        await whole(store)
    assert damaged(await store.verify(SECOND))


async def test_over_a_base_that_is_gone_a_whole_is_stored(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    folder = await store_second(store, tmp_path / "nothing", None)
    assert not (folder / "changes").exists()
    assert await whole(store) == changed()
