"""Another process's writes, noted by the kernel; the process here is a Python that writes when told."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.linux import pagemap, writewatch
from ramet.linux.pagemap import PAGE_BYTES
from ramet.linux.writewatch import WriteWatch
from tests.linux.writer import PAGE_COUNT, Writer

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="reading another process is for root"),
    pytest.mark.skipif(not writewatch.is_supported(), reason="needs Linux 6.7"),
]


@pytest.fixture(params=["anonymous", "huge", "of a memfd", "of a stored file"])
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Writer]:
    fd = None
    if request.param == "of a memfd":
        fd = os.memfd_create("base")
    elif request.param == "of a stored file":
        fd = os.open(tmp_path / "base", os.O_RDWR | os.O_CREAT)
    if fd is not None:
        os.pwrite(fd, b"x" * PAGE_COUNT * PAGE_BYTES, 0)
    writer = Writer(
        fd, mmap.MADV_HUGEPAGE if request.param == "huge" else mmap.MADV_NOHUGEPAGE, is_watchable=True
    )
    yield writer
    writer.close()
    if fd is not None:
        os.close(fd)


def test_a_process_that_is_gone_is_an_error(writer: Writer) -> None:
    writer.close()
    with pytest.raises(OSError):
        WriteWatch.find(writer.pid)


def test_a_process_that_was_not_prepared_cannot_be_watched() -> None:
    writer = Writer(None, mmap.MADV_NOHUGEPAGE)
    assert WriteWatch.find(writer.pid) is None
    with pytest.raises(OSError):
        writer.written()
    with pytest.raises(OSError):
        writer.own(protect=True)
    writer.close()


def test_what_the_environment_has_loaded_already_is_loaded_too() -> None:
    library = Path("/our/library.so")
    assert writewatch.prepared({"A": "1"}, library) == {"A": "1", "LD_PRELOAD": "/our/library.so"}
    both = writewatch.prepared({"LD_PRELOAD": "/other.so"}, library)
    assert both == {"LD_PRELOAD": "/our/library.so:/other.so"}


def test_what_is_written_is_noted_until_it_is_protected_again(writer: Writer) -> None:
    writer.do("write", 1, 2, 600)
    writer.watch()
    own = writer.own(protect=True)
    assert own >= {1, 2, 600}
    assert writer.written() == set()
    writer.do("write", 2, 9, 2000)
    written = writer.written()
    assert written >= {2, 9, 2000}
    assert writer.written(protect=True) == written
    assert writer.written() == set()
    writer.do("write", 600)
    assert 600 in writer.written()
    assert 1 not in writer.written()
    assert writer.own() == own | written


def test_a_restarted_daemon_finds_the_watch_and_what_it_noted(writer: Writer) -> None:
    writer.do("write", 1, 3)
    writer.watch()
    writer.own(protect=True)
    writer.do("write", 3)
    writer.watch()
    assert 3 in writer.written()


def test_more_runs_than_one_scan_tells_are_all_told_and_protected(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagemap, "_REGION_COUNT", 5)
    writer.do("write", *range(0, 100, 2))
    writer.watch()
    assert writer.own(protect=True) >= set(range(0, 100, 2))
    writer.do("write", *range(0, 100, 4))
    assert writer.written(protect=True) == set(range(0, 100, 4))
    assert writer.written() == set()
