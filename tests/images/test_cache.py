"""Downloaded layers: bounded while idle, kept while used, and never believed for where they lie."""

import errno
import os
from pathlib import Path
from types import MappingProxyType

import pytest

from ramet.images.documents import OCI_LAYER, Descriptor
from ramet.images.errors import ConversionFailed, DigestMismatch, StorageFull, storage_error
from ramet.images.reference import Digest
from ramet.images.registry.cache import BlobCache
from tests.images.build import digest_of

pytestmark = pytest.mark.anyio

BLOB_BYTES = 1000


def content(number: int) -> bytes:
    return bytes([number]) * BLOB_BYTES


def blob(number: int) -> Descriptor:
    found = content(number)
    return Descriptor(OCI_LAYER, Digest(digest_of(found)), len(found), MappingProxyType({}))


def open_cache(folder: Path, bytes_max: int = 1 << 30, free_bytes_min: int = 0) -> BlobCache:
    cache = BlobCache(folder / "blobs", bytes_max, free_bytes_min)
    cache.open()
    return cache


async def put(cache: BlobCache, number: int, age_s: int = 0) -> None:
    """Download one blob, `age_s` before now."""
    part = await cache.open_part(blob(number))
    try:
        await part.add(content(number))
        await part.finish()
    finally:
        part.close()
    path = cache.path(blob(number).digest)
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)


async def kept(cache: BlobCache, *numbers: int) -> list[int]:
    return [number for number in numbers if cache.path(blob(number).digest).exists()]


async def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    for number in range(5):
        await put(cache, number, age_s=100 - number)
    assert await cache.has(blob(0))  # Which is a use.
    cache.trim(2 * BLOB_BYTES)
    assert await kept(cache, *range(5)) == [0, 4]
    cache.trim(0)
    assert await kept(cache, *range(5)) == []


async def test_what_a_pull_uses_stays_and_the_bound_holds_afterwards(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, bytes_max=BLOB_BYTES)
    held = [blob(number).digest for number in range(3)]
    async with cache.holding(held), cache.holding(held[:1]):
        for number in range(5):
            await put(cache, number, age_s=100 - number)
        cache.trim(0)
        assert await kept(cache, *range(5)) == [0, 1, 2]
    assert await kept(cache, *range(5)) == [2]


async def test_half_a_blob_counts_and_goes_like_a_whole_one(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    part = await cache.open_part(blob(1))
    await part.add(content(1)[:10])
    part.close()
    assert cache.missing_bytes([blob(1), blob(2)]) == 2 * BLOB_BYTES - 10
    async with cache.holding([blob(1).digest]):
        cache.trim(0)
        assert cache.missing_bytes([blob(1)]) == BLOB_BYTES - 10
    cache.trim(0)
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_room_is_made_of_unused_blobs_before_it_is_refused(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, free_bytes_min=1 << 60)
    await put(cache, 1)
    await put(cache, 2)
    async with cache.holding([blob(1).digest]):
        with pytest.raises(StorageFull) as caught:
            cache.require(5)
        assert await kept(cache, 1, 2) == [1]
    assert caught.value.fields["needed_bytes"] == 5


@pytest.mark.parametrize("wrong", [b"", b"x", content(2), content(1) + b"x"])
async def test_a_whole_blob_that_was_changed_meanwhile_is_thrown_away(tmp_path: Path, wrong: bytes) -> None:
    await put(open_cache(tmp_path), 1)
    cache = open_cache(tmp_path)
    cache.path(blob(1).digest).write_bytes(wrong)
    assert not await cache.has(blob(1))
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_a_doubted_blob_is_hashed_again(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    await put(cache, 1)
    cache.path(blob(1).digest).write_bytes(content(2))
    assert await cache.has(blob(1))  # It was right when this process had finished it.
    cache.doubt([blob(1).digest])
    assert not await cache.has(blob(1))


async def test_half_a_blob_is_continued_by_another_process(tmp_path: Path) -> None:
    part = await open_cache(tmp_path).open_part(blob(1))
    await part.add(content(1)[:400])
    part.close()
    cache = open_cache(tmp_path)
    part = await cache.open_part(blob(1))
    assert part.size_bytes == 400
    await part.add(content(1)[400:])
    await part.finish()
    part.close()
    assert cache.path(blob(1).digest).read_bytes() == content(1)


async def test_a_wrong_blob_loses_its_bytes_and_one_too_long_is_refused(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    part = await cache.open_part(blob(1))
    with pytest.raises(DigestMismatch):
        await part.add(content(1) + b"x")
    await part.add(content(2))
    with pytest.raises(DigestMismatch):
        await part.finish()
    assert part.size_bytes == 0
    await part.add(content(1))
    await part.finish()
    part.close()
    assert await cache.has(blob(1))


async def test_half_a_blob_longer_than_the_whole_begins_anew(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.path(blob(1).digest).with_name(cache.path(blob(1).digest).name + ".part").write_bytes(
        content(1) * 2
    )
    part = await cache.open_part(blob(1))
    assert part.size_bytes == 0
    part.close()


async def test_a_folder_in_the_place_of_a_blob_is_an_error_with_a_name(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.path(blob(1).digest).mkdir()
    with pytest.raises(ConversionFailed):
        await cache.has(blob(1))
    cache.path(blob(2).digest).with_name(cache.path(blob(2).digest).name + ".part").mkdir()
    with pytest.raises(ConversionFailed):
        await cache.open_part(blob(2))
    cache.trim(0)  # And what is none of ours does not stop the others from going.
    await put(cache, 3)
    cache.trim(0)
    assert await kept(cache, 3) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_as_that(code: int) -> None:
    assert isinstance(storage_error(OSError(code, "full")), StorageFull)
    assert isinstance(storage_error(OSError(errno.EIO, "bad")), ConversionFailed)


async def test_what_was_not_used_for_a_while_is_collected(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    for number, age_s in enumerate((5000, 5000, 5000, 10)):
        await put(cache, number, age_s)
    half = tmp_path / "blobs" / f"{cache.path(blob(4).digest).name}.part"
    half.write_bytes(b"half")
    now = half.stat().st_mtime
    os.utime(half, (now - 5000,) * 2)
    async with cache.holding([blob(0).digest]):
        assert await cache.has(blob(1))  # Which is a use.
        assert cache.collect(now - 3600) == 2
        assert await kept(cache, *range(4)) == [0, 1, 3]
        assert not half.exists()
    assert cache.collect(now - 3600) == 1
    assert await kept(cache, *range(4)) == [1, 3]
    assert cache.collect(now - 3600) == 0
