"""One daemon to a data folder."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ramet.store.paths import PART_SUFFIX, DataFolder, FolderInUse, write_whole

FORKED = """
import os, sys
from pathlib import Path
from ramet.store.paths import DataFolder
folder = DataFolder(Path(sys.argv[1]))
if os.fork():
    os._exit(0)  # As if killed, between a fork and an exec.
sys.stdin.read(1)
os.execv("/bin/cat", ["cat"])
"""


def test_a_second_owner_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with pytest.raises(FolderInUse, match="running daemon"):
        DataFolder(tmp_path)
    folder.close()
    DataFolder(tmp_path).close()


def test_what_a_killed_daemon_was_just_starting_is_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as daemon:
        assert daemon.wait() == 0
        assert daemon.stdin is not None
        with pytest.raises(FolderInUse):
            DataFolder(tmp_path)
        opened: list[DataFolder] = []
        waiting = threading.Thread(target=lambda: opened.append(DataFolder(tmp_path)))
        waiting.start()
        os.write(daemon.stdin.fileno(), b"!")  # It becomes another program, with the lock closed on the way.
        waiting.join()
        opened[0].close()


def test_a_file_is_not_written_where_somebody_else_has_led(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret", tmp_path / "spec.json"
    secret.write_text("secret")
    path.with_name(f"spec.json{PART_SUFFIX}").symlink_to(secret)
    write_whole(path, b"spec")
    assert (path.read_text(), path.is_symlink(), secret.read_text()) == ("spec", False, "secret")
