"""What goes first, and that nothing else does: asked of processes that are there for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ramet.linux.priority import AUTOGROUP

PROGRAM = """
import json, os, resource, subprocess, sys, threading
from pathlib import Path
from ramet.linux.priority import AUTOGROUP, go_first

def tell():
    assert resource.getrlimit(resource.RLIMIT_NICE)[0] == 0 or not went_first
    group = AUTOGROUP.read_text().split() if AUTOGROUP.exists() else []
    return [os.getpriority(os.PRIO_PROCESS, 0), group[-1] if group else None]

went_first = sys.argv[1] == "child"
if went_first:
    print(json.dumps(tell()))
    raise SystemExit
before = tell()
go_first(-7, *map(Path, sys.argv[2:]))
went_first = True
of_threads = []
thread = threading.Thread(target=lambda: of_threads.append(tell()))
thread.start()
thread.join()
command = [sys.executable, "-c", sys.argv[1], "child"]
child = json.loads(subprocess.check_output(command, start_new_session=True))
print(json.dumps({"before": before, "after": tell(), "thread": of_threads[0], "child": child}))
"""


def run(*paths: Path, leads_session: bool) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, PROGRAM, *map(str, paths)]
    told = subprocess.check_output(command, text=True, start_new_session=leads_session)
    return dict(json.loads(told))


def test_the_calling_thread_goes_first_and_what_it_starts_does_not() -> None:
    told = run(leads_session=False)
    assert [told[who][0] for who in ("before", "after", "thread", "child")] == [0, -7, 0, 0]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroups")
def test_a_session_goes_first_if_it_is_our_own() -> None:
    own, others = run(leads_session=True), run(leads_session=False)
    assert [own[who][1] for who in ("before", "after", "child")] == ["0", "-7", "0"]
    assert others["after"][1] == others["before"][1]


def test_a_kernel_without_autogroups_is_no_failure(tmp_path: Path) -> None:
    told = run(tmp_path / "none", leads_session=True)
    assert told["after"][0] == -7
    assert not (tmp_path / "none").exists()


def test_who_is_in_no_autogroup_is_asked_for_none(tmp_path: Path) -> None:
    (group := tmp_path / "autogroup").write_text("")
    assert run(group, leads_session=True)["after"][0] == -7
    assert group.read_text() == ""
