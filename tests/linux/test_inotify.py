"""What appears in a folder is told, however it came there."""

from pathlib import Path

import anyio
import pytest

from ramet.linux.inotify import watch_new_files

pytestmark = pytest.mark.anyio


async def test_a_file_that_is_made_and_one_that_is_moved_there_are_told(tmp_path: Path) -> None:
    watched, other = tmp_path / "watched", tmp_path / "other"
    watched.mkdir()
    with watch_new_files(watched) as new:
        (watched / "made").touch()
        await new.wait()
        other.touch()
        other.rename(watched / "moved")
        await new.wait()
        with anyio.move_on_after(0) as scope:
            await new.wait()
        assert scope.cancelled_caught


async def test_somebody_else_can_end_the_wait(tmp_path: Path) -> None:
    with watch_new_files(tmp_path) as new:
        new.tell()
        await new.wait()


async def test_a_folder_that_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), watch_new_files(tmp_path / "nowhere"):
        pass
