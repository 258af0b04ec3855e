"""A stranger's archive fills a folder, and reaches nothing outside it; what it may not hold is refused."""

import gzip
import os
import stat
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ramet.volumes import archive as archives
from ramet.volumes.archive import unpack
from ramet.volumes.errors import ArchiveInvalid, ArchiveTooLarge
from tests.images.build import Entry, file, folder, hardlink, symlink, tar, zstd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners are given away by root only")

MIB = 1 << 20


def go_on() -> None:
    """Stop nothing."""


class Bench:
    """A folder to unpack into, beside one that nothing may touch."""

    def __init__(self, place: Path) -> None:
        self.tree, self.outside, self._archive = place / "tree", place / "outside", place / "archive"
        self.tree.mkdir()
        self.outside.mkdir()

    def unpack(self, content: bytes, size_bytes: int = MIB) -> int:
        self._archive.write_bytes(content)
        try:
            return unpack(self._archive, self.tree, size_bytes, go_on)
        finally:
            assert list(self.outside.iterdir()) == []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
def test_files_come_out_as_they_are_however_packed(bench: Bench, pack: Callable[[bytes], bytes]) -> None:
    entries = [
        folder("./", mode=0o750, uid=7),
        file("./a/file", b"content", uid=1000, gid=1001, mode=0o4640),
        hardlink("same", "a/file"),
        symlink("link", "/etc/passwd"),
        file("a/.wh.hidden", b"no whiteout"),
    ]
    assert bench.unpack(pack(tar(entries))) == len(entries)
    made = bench.tree / "a/file"
    assert made.read_bytes() == b"content"
    facts = made.stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (1000, 1001, 0o4640)
    assert facts.st_ino == (bench.tree / "same").stat().st_ino
    assert os.readlink(bench.tree / "link") == "/etc/passwd"
    assert (bench.tree / "a/.wh.hidden").read_bytes() == b"no whiteout"
    assert (bench.tree.stat().st_uid, stat.S_IMODE(bench.tree.stat().st_mode)) == (7, 0o750)


@pytest.mark.parametrize(
    "entries",
    [
        [file("../outside/file")],
        [file("a/../../outside/file")],
        [file("/absolute")],
        [file("a"), hardlink("b", "/etc/passwd")],
        [hardlink("b", "../outside")],
        [hardlink("b", "nothing")],
        [Entry("null", type=tarfile.CHRTYPE, device=(1, 3))],
        [Entry("disk", type=tarfile.BLKTYPE, device=(254, 0))],
        [file("a"), file("a/below")],
        [file("x" * 300)],
        [Entry("odd", type=b"Z")],
    ],
    ids=lambda entries: entries[-1].name[:20],
)
def test_what_leads_out_or_is_no_file_is_refused(bench: Bench, entries: Iterable[Entry]) -> None:
    with pytest.raises(ArchiveInvalid):
        bench.unpack(tar(entries))


def test_what_is_written_through_a_link_stays_inside(bench: Bench) -> None:
    out = f"/{bench.outside.relative_to('/')}"
    bench.unpack(tar([symlink("door", out), folder(out.removeprefix("/")), file("door/file", b"inside")]))
    assert (bench.tree / out.removeprefix("/") / "file").read_bytes() == b"inside"


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive at all" * 100, gzip.compress(b""), b"\x1f\x8b broken"],
    ids=["nothing", "text", "nothing, packed", "damaged"],
)
def test_what_is_no_archive_is_refused(bench: Bench, content: bytes) -> None:
    with pytest.raises(ArchiveInvalid):
        bench.unpack(content)


def test_an_archive_that_was_cut_is_refused(bench: Bench) -> None:
    whole = tar([file("file", bytes(range(256)) * 1000)])
    for content in (whole[:1000], gzip.compress(whole)[:-400]):
        with pytest.raises(ArchiveInvalid):
            bench.unpack(content)


def test_a_small_file_that_swells_is_stopped_at_the_size_of_the_volume(bench: Bench) -> None:
    bomb = gzip.compress(tar([file(f"zeros{number}", bytes(MIB // 2)) for number in range(3)]))
    assert len(bomb) < MIB // 100
    with pytest.raises(ArchiveTooLarge):
        bench.unpack(bomb)
    assert sum(path.stat().st_size for path in bench.tree.iterdir()) <= MIB


def test_entries_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ENTRY_COUNT_MAX", 3)
    assert bench.unpack(tar([file(str(number)) for number in range(3)])) == 3
    with pytest.raises(ArchiveTooLarge):
        bench.unpack(tar([file(str(number)) for number in range(4)]))


def test_it_stops_when_it_is_asked_to(bench: Bench, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    (tmp_path / "archive").write_bytes(tar([file("a")]))
    with pytest.raises(Enough):
        unpack(tmp_path / "archive", bench.tree, MIB, stop)
    assert list(bench.tree.iterdir()) == []
