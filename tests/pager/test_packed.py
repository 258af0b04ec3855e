"""Packed bases: memory that is unpacked when it is touched, and kept in a cache of bounded size."""

import os
import random
import sys
from pathlib import Path

import pytest

from ramet.pager import (
    BaseFormat,
    BaseUnusable,
    CompletionFailed,
    PagerClient,
    SessionEnd,
    WorkingSetUse,
    pack,
)
from ramet.pager.packed import WINDOW_BYTES, PackedDamaged, read_memory_bytes, unpack
from tests.pager.conftest import NewVmm, VmmProcess
from tests.pager.test_faults import MIB, PAGE_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

SIZE_BYTES = 4 * MIB + 3 * PAGE_BYTES


def make_memory(folder: Path, seed: int = 1) -> Path:
    """Write memory as a guest leaves it: pages of text, of noise, of zeroes, and holes of any length."""
    rng = random.Random(seed)
    path = folder / f"memory-{seed}"
    with path.open("wb") as file:
        position = 0
        while position < SIZE_BYTES:
            size = min(rng.choice([1, 2, 5, 16, 40]) * PAGE_BYTES, SIZE_BYTES - position)
            kind = rng.randrange(4)
            if kind == 0:
                file.write(rng.randbytes(size))
            elif kind == 1:
                file.write(b"".join(b"%016d" % rng.randrange(999) for _ in range(size // 16)))
            elif kind == 2:
                file.write(bytes(size))
            position += size
            file.seek(position)
        file.truncate(SIZE_BYTES)
    return path


async def serve_packed(
    client: PagerClient,
    new_vmm: NewVmm,
    session_id: str,
    packed: Path,
    working_set: WorkingSetUse = WorkingSetUse.OFF,
) -> VmmProcess:
    path = await client.open_session(
        session_id, packed, SIZE_BYTES, base_format=BaseFormat.PACKED, working_set=working_set
    )
    vmm = await new_vmm(path)
    await vmm.ask("map", size=SIZE_BYTES)
    await vmm.ask("greet", mappings=[[0, SIZE_BYTES, 0]])
    return vmm


async def test_packed_memory_reads_as_it_was(client: PagerClient, new_vmm: NewVmm, folder: Path) -> None:
    raw, packed = make_memory(folder), folder / "packed"
    told = pack(raw, packed)
    assert told.size_bytes == packed.stat().st_size < told.data_bytes < told.memory_bytes == SIZE_BYTES
    vmm = await serve_packed(client, new_vmm, "a", packed)
    await vmm.ask("touch", page_count=SIZE_BYTES // PAGE_BYTES, threads=8, seed=2)
    assert await vmm.read(0, SIZE_BYTES) == raw.read_bytes()
    (session,) = (await client.statistics()).sessions
    assert session.copied_bytes == told.data_bytes
    assert session.zeroed_bytes == SIZE_BYTES - told.data_bytes


def test_packed_memory_is_a_zstd_stream_of_its_data(folder: Path) -> None:
    raw, packed = make_memory(folder), folder / "packed"
    pack(raw, packed)
    content = raw.read_bytes()
    pages = (content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES))
    assert zstd.decompress(packed.read_bytes()) == b"".join(page for page in pages if any(page))


async def test_sessions_of_one_base_unpack_a_window_once(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    raw, packed = make_memory(folder), folder / "packed"
    pack(raw, packed)
    for number in range(3):
        vmm = await serve_packed(client, new_vmm, f"s{number}", packed)
        assert await vmm.read(0, SIZE_BYTES) == raw.read_bytes()
    cache = (await client.statistics()).cache
    assert cache.miss_count == cache.window_count
    assert cache.hit_count == 2 * cache.window_count
    # It lingers for who comes after the last one has gone, even under another name.
    for number in range(3):
        await client.close_session(f"s{number}")
    link = folder / "link"
    link.hardlink_to(packed)
    vmm = await serve_packed(client, new_vmm, "later", link)
    assert await vmm.read(0, SIZE_BYTES) == raw.read_bytes()
    assert (await client.statistics()).cache.miss_count == cache.miss_count


async def test_bases_are_told_apart_by_their_files(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    """A file at the same path is another base, whatever a lineage says."""
    packed = folder / "packed"
    for seed in range(3):
        raw = make_memory(folder, seed)
        packed.unlink(missing_ok=True)
        pack(raw, packed)
        vmm = await serve_packed(client, new_vmm, f"s{seed}", packed)
        assert await vmm.read(0, SIZE_BYTES) == raw.read_bytes()
        await client.close_session(f"s{seed}")


async def test_a_working_set_of_packed_memory_is_replayed_and_completed(
    client: PagerClient, new_vmm: NewVmm, folder: Path
) -> None:
    raw, packed = make_memory(folder), folder / "packed"
    pack(raw, packed)
    first = await serve_packed(client, new_vmm, "first", packed, WorkingSetUse.AUTO)
    touched = sorted(random.Random(3).sample(range(SIZE_BYTES // PAGE_BYTES), 60))
    await first.ask("touch_pages", pages=touched)
    assert await client.ready_session("first") == 60
    second = await serve_packed(client, new_vmm, "second", packed, WorkingSetUse.AUTO)
    while await second.ask("present", page_count=SIZE_BYTES // PAGE_BYTES) != touched:
        pass
    await client.complete_session("second")
    assert await second.read(0, SIZE_BYTES) == raw.read_bytes()


async def test_what_is_not_packed_memory_is_refused(client: PagerClient, folder: Path) -> None:
    raw, packed = make_memory(folder), folder / "packed"
    pack(raw, packed)
    cut, empty = folder / "cut", folder / "empty"
    cut.write_bytes(packed.read_bytes()[:-1])
    empty.touch()
    for path in (raw, cut, empty):
        with pytest.raises(BaseUnusable):
            await client.open_session("a", path, SIZE_BYTES, base_format=BaseFormat.PACKED)
    assert (await client.health()).session_count == 0


async def test_damage_is_never_handed_to_a_guest(client: PagerClient, new_vmm: NewVmm, folder: Path) -> None:
    raw, packed = make_memory(folder), folder / "packed"
    pack(raw, packed)
    with packed.open("r+b") as file:
        file.seek(packed.stat().st_size // 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
    vmm = await serve_packed(client, new_vmm, "a", packed)
    with pytest.raises(CompletionFailed, match="window"):
        await client.complete_session("a")
    content = raw.read_bytes()

    async def read_all() -> None:
        for at in range(0, SIZE_BYTES, WINDOW_BYTES):
            size = min(WINDOW_BYTES, SIZE_BYTES - at)
            assert await vmm.read(at, size) == content[at : at + size]

    with pytest.raises(EOFError):
        await read_all()
    while (statistics := await client.statistics()).sessions:
        pass
    assert [end.how for end in statistics.recent_ends] == [SessionEnd.FAILED]


def test_memory_that_is_no_whole_number_of_pages_is_not_packed(folder: Path) -> None:
    raw = folder / "raw"
    raw.write_bytes(bytes(4097))
    with pytest.raises(OSError, match="no whole number of pages"):
        pack(raw, folder / "packed")


@pytest.mark.parametrize("seed", range(4))
def test_what_is_packed_is_unpacked_where_it_was(tmp_path: Path, seed: int) -> None:
    raw, packed = make_memory(tmp_path, seed), tmp_path / "packed"
    done = pack(raw, packed)
    again = bytearray(SIZE_BYTES)
    with packed.open("rb") as source:
        assert read_memory_bytes(source) == SIZE_BYTES == done.memory_bytes
        pieces = list(unpack(source))
    for offset, data in pieces:
        assert again[offset : offset + len(data)] == bytes(len(data))  # None twice.
        again[offset : offset + len(data)] = data
    assert again == raw.read_bytes()
    assert sum(len(data) for _, data in pieces) == done.data_bytes
    assert packed.stat().st_size == done.size_bytes


@pytest.mark.parametrize("at", ["start", "frames", "table", "footer"])
def test_damage_is_not_unpacked(tmp_path: Path, at: str) -> None:
    raw, packed = make_memory(tmp_path), tmp_path / "packed"
    pack(raw, packed)
    data = bytearray(packed.read_bytes())
    data[{"start": 0, "frames": len(data) // 2, "table": -40, "footer": -3}[at]] ^= 1
    packed.write_bytes(data)
    with packed.open("rb") as source, pytest.raises(PackedDamaged):
        list(unpack(source))


@pytest.mark.parametrize("size_bytes", [0, 10, 28])
def test_what_was_never_packed_is_damaged(tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "packed").write_bytes(bytes(size_bytes))
    with (tmp_path / "packed").open("rb") as source, pytest.raises(PackedDamaged):
        read_memory_bytes(source)
