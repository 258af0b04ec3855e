"""A copy has the same content and the same holes, or there is none."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from ramet.linux.clone import clone_file

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    with path.open("wb") as file:
        file.truncate(8 * MIB + 100)
        for at in (0, 3 * MIB, 8 * MIB + 90):
            file.seek(at)
            file.write(b"something%d" % at)
    return path


def test_a_clone_is_equal_and_as_sparse(source: Path) -> None:
    target = source.with_name("target")
    clone_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks
    with target.open("r+b") as file:
        file.write(b"mine")
    assert source.read_bytes().startswith(b"something0")


def test_a_clone_takes_the_place_of_what_is_there(source: Path) -> None:
    target = source.with_name("target")
    target.write_bytes(b"x" * 20 * MIB)
    clone_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in source.parent.iterdir()) == ["source", "target"]


def test_a_clone_that_fails_leaves_what_was_there(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = source.with_name("target")
    target.write_bytes(b"before")

    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match="No space"):
        clone_file(source, target)
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in source.parent.iterdir()) == ["source", "target"]


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        clone_file(tmp_path / "nowhere", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
