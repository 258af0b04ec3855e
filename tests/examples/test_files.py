"""The examples of docs/files-and-terminals.md, and that its table of errors is whole."""

from pathlib import Path

import pytest

from ramet.cli import copy, terminal
from ramet.client import host_files
from ramet.core.errors import RametError
from tests.examples.test_demo import EXAMPLE, PROJECT, run_session

PAGE = PROJECT / "docs/files-and-terminals.md"


@pytest.mark.vm
def test_the_examples_work(tmp_path_factory: pytest.TempPathFactory) -> None:
    [commands] = EXAMPLE.findall(PAGE.read_text())
    folder = tmp_path_factory.mktemp("f")  # A short path: sockets lie in it.
    (folder / "examples").symlink_to(PROJECT / "examples")
    done = run_session(folder, commands)
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "daemon.log").read_text()
    lines = done.stdout.splitlines()
    assert lines.count("welcome") == 2
    assert lines.count("index.html") == 2  # Where the copied link leads, and in the folder that was unpacked.
    assert {"srv/", "srv/css/", "srv/index.html", "srv/start"} <= set(lines)
    assert not Path(folder / "followed").is_symlink()


def test_every_error_of_these_commands_is_documented() -> None:
    text = PAGE.read_text()
    kinds = {
        kind
        for module in (copy, terminal, host_files)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, RametError) and kind.__module__ == module.__name__
    }
    assert len(kinds) > 8
    assert [kind.code for kind in kinds if f"`{kind.code}`" not in text] == []
