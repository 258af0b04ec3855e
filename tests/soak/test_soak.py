"""Half a minute of `./run soak`, in the suite."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.vm


@pytest.mark.parametrize("arguments", [["30"], ["5", "--fake"]], ids=["guests", "fake"])
def test_a_soak_ends_without_a_violation(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tests.soak", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["violations"] == []
    if "--fake" in arguments:
        assert summary["models"] > 0
    else:
        assert summary["operations"]["fork"] > 0
        assert summary["checks"] > 0
