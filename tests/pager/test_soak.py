"""Half a minute of `./run soak pager`, in the suite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.vm,  # It needs the cores for itself.
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]


def test_a_soak_of_the_pager_ends_without_a_violation() -> None:
    command = [sys.executable, "-m", "tests.pager.soak", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["violations"] == []
    for name in ("look", "kill", "close", "complete", "hostile", "evictions", "operations"):
        assert summary[name] > 0, summary
