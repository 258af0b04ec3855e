"""`./run bench pager`: one round of it."""

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


def test_its_last_line_has_every_figure() -> None:
    command = [sys.executable, "bench/pager.py", "--rounds", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    ratios = {
        "window_over_page": ("window_pages_per_s", "page_pages_per_s"),
        "replay_over_mapped_write": ("replay_write_ms", "mapped_write_ms"),
        "replay_over_mapped_read": ("replay_read_ms", "mapped_read_ms"),
        "two_cores_over_one": ("two_cores_pages_per_s", "one_core_pages_per_s"),
    }
    for name, (over, under) in ratios.items():
        assert figures[name] == pytest.approx(figures[over] / figures[under], rel=0.01), name
    assert figures["window_over_page"] > 1
    assert 0 <= figures["idle_session_bytes"] < 64 * 1024
    assert figures["rounds"] == 1
