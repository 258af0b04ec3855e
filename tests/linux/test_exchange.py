"""Two files exchange their names, under the hands of who has them open."""

import os
from pathlib import Path

import pytest

from ramet.linux.exchange import exchange_files


def test_who_has_a_file_open_finds_it_under_the_others_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    with one.open("a") as file:
        exchange_files(one, other)
        assert os.readlink(f"/proc/self/fd/{file.fileno()}") == str(other)
        file.write("!")
    assert (one.read_text(), other.read_text()) == ("2", "1!")


def test_a_missing_file_is_an_error_and_nothing_is_renamed(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.write_text("1")
    with pytest.raises(FileNotFoundError):
        exchange_files(one, tmp_path / "other")
    assert one.read_text() == "1"
