"""The examples of docs/install.md that a test can run, do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

from ramet.setup.install import CLIENT_CONFIG, CONFIG, SYSCTL, UNIT

PAGE = Path(__file__).parents[2] / "docs/install.md"
EXAMPLE = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)


def test_the_examples_work(tmp_path: Path) -> None:
    [commands] = EXAMPLE.findall(PAGE.read_text())
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-ex", "-c", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_named_are_those_that_are_written() -> None:
    page = PAGE.read_text()
    assert all(f"| `{path}` |" in page for path in (CONFIG, UNIT, SYSCTL, Path("~") / CLIENT_CONFIG))
