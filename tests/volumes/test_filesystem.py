"""The file system of a volume is a sparse ext4 that needs no repair, with the files it was made of."""

import struct
import subprocess
from pathlib import Path

import pytest

from ramet.volumes import filesystem
from ramet.volumes.errors import ArchiveTooLarge, VolumeBroken, VolumeUnwritable
from ramet.volumes.filesystem import is_clean, make_file_system

MIB = 1 << 20
GIB = 1 << 30
INCOMPATIBLE_OFFSET = 1024 + 0x60
NEEDS_RECOVERY = 0x4


def debugfs(file: Path, request: str) -> str:
    done = subprocess.run(["debugfs", "-R", request, file], capture_output=True, text=True, check=True)
    return done.stdout


def test_an_empty_one_is_sparse_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "data.raw"
    make_file_system(file, 1000 * GIB)
    assert file.stat().st_size == 1000 * GIB
    assert file.stat().st_blocks * 512 < 64 * MIB
    assert is_clean(file)
    subprocess.run(["e2fsck", "-fn", file], check=True, capture_output=True)


def test_one_is_made_of_a_tree_with_all_that_it_is(tmp_path: Path) -> None:
    tree, file = tmp_path / "tree", tmp_path / "data.raw"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"content")
    (tree / "sub/file").chmod(0o640)
    (tree / "link").symlink_to("/etc/passwd")
    make_file_system(file, GIB, tree, entry_count=3)
    subprocess.run(["e2fsck", "-fn", file], check=True, capture_output=True)
    assert debugfs(file, "cat /sub/file") == "content"
    assert "0640" in debugfs(file, "stat /sub/file")
    assert "/etc/passwd" in debugfs(file, "stat /link")


def test_more_files_than_a_volume_of_that_size_has_room_for_by_default_fit(tmp_path: Path) -> None:
    tree, file, count = tmp_path / "tree", tmp_path / "data.raw", 3000
    tree.mkdir()
    for number in range(count):
        (tree / str(number)).touch()
    make_file_system(file, 32 * MIB, tree, entry_count=count)
    assert len(debugfs(file, "ls -p /").splitlines()) > count


def test_a_tree_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(bytes(range(256)) * 4096 * 40)
    with pytest.raises(ArchiveTooLarge):
        make_file_system(tmp_path / "data.raw", 16 * MIB, tmp_path / "tree", entry_count=1)


def test_without_its_program_none_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_COMMAND", ("ramet-no-such-program",))
    with pytest.raises(VolumeUnwritable, match="not installed"):
        make_file_system(tmp_path / "data.raw", GIB)
    monkeypatch.setattr(filesystem, "_COMMAND", ("false",))
    with pytest.raises(VolumeUnwritable, match="failed"):
        make_file_system(tmp_path / "other.raw", GIB)


def test_one_that_was_not_taken_off_is_not_clean(tmp_path: Path) -> None:
    file = tmp_path / "data.raw"
    make_file_system(file, GIB)
    with file.open("r+b") as disk:
        disk.seek(INCOMPATIBLE_OFFSET)
        (flags,) = struct.unpack("<I", disk.read(4))
        disk.seek(INCOMPATIBLE_OFFSET)
        disk.write(struct.pack("<I", flags | NEEDS_RECOVERY))
    assert not is_clean(file)


@pytest.mark.parametrize("content", [b"", bytes(1 << 16)])
def test_what_is_no_file_system_is_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.raw").write_bytes(content)
    with pytest.raises(VolumeBroken):
        is_clean(tmp_path / "data.raw")
    with pytest.raises(VolumeBroken):
        is_clean(tmp_path / "nothing.raw")
