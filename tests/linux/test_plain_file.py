"""What somebody else has left in the place of a file leads nowhere, and makes nobody wait."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.linux.plain_file import create_plain, open_plain

LEFT: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, target: path.symlink_to(target),
    "dangling": lambda path, target: path.symlink_to(target.with_name("nowhere")),
    "fifo": lambda path, target: os.mkfifo(path),
    "folder": lambda path, target: path.mkdir(),
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("secret")
    return path


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_CREAT])
@pytest.mark.parametrize("left", LEFT)
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, secret: Path, left: str, flags: int) -> None:
    path = tmp_path / "log"
    LEFT[left](path, secret)
    with pytest.raises(OSError):
        open_plain(path, flags)
    assert secret.read_text() == "secret"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("left", ["link", "dangling", "fifo"])
def test_what_is_made_anew_takes_the_place_of_what_was_left(tmp_path: Path, secret: Path, left: str) -> None:
    path = tmp_path / "spec.json"
    LEFT[left](path, secret)
    with os.fdopen(create_plain(path), "wb") as file:
        file.write(b"spec")
    assert (path.read_text(), path.is_symlink(), secret.read_text()) == ("spec", False, "secret")
