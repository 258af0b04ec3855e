"""How much of a file is in memory."""

import os
from pathlib import Path

import pytest

from ramet.linux import pagecache
from ramet.linux.pagecache import read_cached_bytes

PAGE_BYTES = 4096


@pytest.fixture(params=["cachestat", "mincore"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "mincore":
        monkeypatch.setattr(pagecache, "_SYS_cachestat", 999_999)  # As on an older kernel.
    return str(request.param)


def test_what_was_just_written_is_there_and_holes_are_not(way: str) -> None:
    fd = os.memfd_create("pages")
    try:
        os.ftruncate(fd, 64 * PAGE_BYTES)
        os.pwrite(fd, bytes(3 * PAGE_BYTES), 8 * PAGE_BYTES)
        assert read_cached_bytes(fd) == 3 * PAGE_BYTES
    finally:
        os.close(fd)


def test_what_was_dropped_is_not_there(way: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(64 * PAGE_BYTES))
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
        assert read_cached_bytes(fd) == 64 * PAGE_BYTES
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if os.statvfs(file).f_blocks and read_cached_bytes(fd) == 64 * PAGE_BYTES:
            pytest.skip("this file system keeps its files in memory")
        assert read_cached_bytes(fd) == 0
    finally:
        os.close(fd)


def test_an_empty_file_has_none(way: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    fd = os.open(tmp_path / "empty", os.O_RDONLY)
    assert read_cached_bytes(fd) == 0
    os.close(fd)


def test_a_file_that_is_not_open_is_an_error(way: str) -> None:
    with pytest.raises(OSError):
        read_cached_bytes(-1)
