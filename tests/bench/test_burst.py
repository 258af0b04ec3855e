"""`./run bench burst`: its JSON, its comparison, and one small run of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.burst import Measured, Plan, Side
from bench.comparison import compare, load_report
from bench.measure import cpu_s, guest_ram_anonymous_bytes, memcpy_s, private_bytes

ROOT = Path(__file__).parents[2]


def measured() -> Measured:
    found = Measured(Plan(2, 3, 2), first_s=0.3, resident_bytes=85 << 20)
    for side, factor in ((found.platform, 1.2), (found.floor, 1.0)):
        for wall_s in (1.0, 9.0, 2.0):
            side.add(2, [0.5 * factor, wall_s * factor], [{"load": 10.0, "since_capture": wall_s * 1000}])
        side.singles_s = [0.1 * factor, 0.2 * factor, 0.9 * factor]
    found.pauses_s, found.memcpys_s = [0.02, 0.01, 0.05], [0.01, 0.02, 0.01]
    found.cpu_s_per_fork = [0.01, 0.014, 0.2]
    found.ram_private_bytes, found.child_private_bytes = [1 << 20, 3 << 20, 2 << 20], [40 << 20]
    found.waiting_private_bytes = [15 << 20]
    return found


def test_the_report_compares_the_medians_of_both_sides() -> None:
    report = json.loads(json.dumps(measured().report()))
    assert {
        "platform",
        "floor",
        "ratio",
        "source_pause_s",
        "pause_over_memcpy",
        "cores",
        "load1",
    } <= report.keys()
    figures = {"count", "succeeded", "wall_s", "mean_s", "p50_s", "p95_s", "max_s"}
    assert report["platform"].keys() == report["floor"].keys() == figures
    assert (report["platform"]["wall_s"], report["floor"]["wall_s"]) == (2.4, 2.0)
    assert report["ratio"] == {"wall": 1.2, "p95": 1.2, "single": 1.2}
    assert report["source_pause_s"] == {"p50": 0.02, "max": 0.05}
    assert report["pause_over_memcpy"] == 2.0
    assert report["daemon_cpu_s_per_fork"] == 0.014
    assert report["guest_ram_private_bytes"] == 2 << 20
    assert (report["child_private_bytes"], report["waiting_private_bytes"]) == (40 << 20, 15 << 20)


def test_a_side_without_successes_has_no_ratio() -> None:
    found = measured()
    found.floor = Side(singles_s=[0.1])
    found.floor.add(2, [], [])
    assert found.report()["ratio"]["wall"] is None


def test_a_run_is_compared_with_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "earlier.txt"
    earlier: dict[str, Any] = {**measured().report(), "daemon_cpu_s_per_fork": 0.028}
    file.write_text("a table\n" + json.dumps(earlier) + "\n")
    rows = {row[0]: row[1:] for row in compare(load_report(file), measured().report())}
    assert rows["daemon_cpu_s_per_fork"] == ("0.028", "0.014", "0.50")
    assert rows["ratio.wall"] == ("1.2", "1.2", "1.00")


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"sweep": "count", "runs": []}'])
def test_what_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "earlier.txt"
    file.write_text(text)
    with pytest.raises(SystemExit, match="does not end with the JSON"):
        load_report(file)
    with pytest.raises(SystemExit, match="does not end with the JSON"):
        load_report(tmp_path / "missing")


def test_what_a_process_uses_is_found() -> None:
    assert cpu_s(os.getpid()) > 0
    assert private_bytes(os.getpid()) > 1 << 20
    assert memcpy_s(1 << 20) > 0
    with pytest.raises(AssertionError, match="has no mapping of 4097 bytes"):
        guest_ram_anonymous_bytes(os.getpid(), 4097)


@pytest.mark.vm
@pytest.mark.parametrize("pools", ["off", "on"])
def test_a_small_burst_and_its_floor(tmp_path: Path, pools: str) -> None:
    picture = tmp_path / "burst.svg"
    done = run("--count", "2", "--rounds", "1", "--picture", str(picture), "--pools", pools)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert ("vmm_start" in report["phases_s"]) == (pools == "off")
    assert report["platform"]["succeeded"] == report["floor"]["succeeded"] == 2
    assert report["ratio"]["wall"] > 0
    assert 0 < report["guest_ram_private_bytes"] < report["resident_bytes"]
    assert picture.read_text().startswith("<svg")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/burst.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
