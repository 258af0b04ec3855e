"""`./run bench reads`: one small run of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.vm
def test_reads_are_answered_while_a_vmm_hangs_and_all_forks_are_made() -> None:
    command = [sys.executable, "bench/reads.py", "--count", "2", "--rounds", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["succeeded"] == report["forks"] == 2
    for when in ("idle_s", "burst_s"):
        figures = report[when]
        assert figures["count"] > 0
        assert 0 < figures["p50"] <= figures["p99"] <= figures["max"]
