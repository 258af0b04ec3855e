"""The whole report: on this host, on an empty one, with checks that break or hang, and as a command."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.daemon.checkup import examine
from ramet.doctor.checkup import CHECKS, check_all
from ramet.doctor.findings import Finding, Level, info, ok, warn, worst
from ramet.doctor.host import HostView
from ramet.doctor.subject import Subject
from tests.doctor.made_host import MadeHost


def ramet(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ramet.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_check_breaks_off_on_a_host_without_anything(host: MadeHost) -> None:
    found = check_all(Subject(data_dir=Path("/data"), socket=Path("/s")), host.view())
    assert not [finding for finding in found if finding.code in ("check_failed", "check_timeout")]
    assert worst(found) is Level.FAIL


def test_no_check_breaks_off_here_and_each_says_something_or_nothing_is_wrong() -> None:
    found = check_all(Subject())
    assert not [finding for finding in found if finding.code in ("check_failed", "check_timeout")]
    assert len(found) >= len(CHECKS) - 2


def test_every_trouble_comes_with_what_mends_it(host: MadeHost) -> None:
    found = check_all(Subject(data_dir=Path("/data")), host.view()) + check_all(Subject())
    assert all(finding.remedy for finding in found if finding.level in (Level.WARN, Level.FAIL))
    assert not [finding for finding in found if finding.message.endswith(".")]


def test_checks_that_break_or_hang_are_findings_and_cost_no_other(host: MadeHost) -> None:
    release = threading.Event()

    def check_broken(_: Subject, __: HostView) -> Iterator[Finding]:
        yield ok("broken", "first", "first")
        raise ZeroDivisionError("by zero")

    def check_stuck(_: Subject, __: HostView) -> list[Finding]:
        release.wait()
        return []

    def check_well(_: Subject, __: HostView) -> list[Finding]:
        return [ok("well", "well", "well")]

    try:
        found = check_all(Subject(), host.view(), (check_broken, check_stuck, check_well), timeout_s=0.2)
    finally:
        release.set()
    assert [(finding.check, finding.code) for finding in found] == [
        ("broken", "check_failed"),
        ("stuck", "check_timeout"),
        ("well", "well"),
    ]


@pytest.mark.parametrize(
    ("findings", "level"),
    [
        ([], Level.OK),
        ([ok("a", "a", "a"), info("b", "b", "b")], Level.OK),
        ([ok("a", "a", "a"), warn("b", "b", "b", "c")], Level.WARN),
        ([Finding("a", "a", Level.FAIL, "a"), warn("b", "b", "b", "c")], Level.FAIL),
    ],
)
def test_the_worst_finding_is_the_verdict(findings: list[Finding], level: Level) -> None:
    assert worst(findings) is level


def test_the_command_prints_a_stable_shape_and_exits_by_its_verdict(tmp_path: Path) -> None:
    done = ramet("doctor", "--json", "--data-dir", str(tmp_path / "data"), "--socket", str(tmp_path / "s"))
    report = json.loads(done.stdout)
    assert report.keys() == {"version", "status", "findings"}
    assert done.returncode == (1 if report["status"] == "fail" else 0)
    for finding in report["findings"]:
        assert finding.keys() == {"check", "code", "level", "message", "remedy"}
        assert finding["level"] in set(Level)
    assert list(tmp_path.iterdir()) == []  # It looked, and made nothing.


def test_people_are_shown_one_line_for_each_finding_and_the_remedy_below(tmp_path: Path) -> None:
    done = ramet("doctor", "--data-dir", str(tmp_path / "data"))
    lines = done.stdout.splitlines()
    assert any(line.startswith(("ok    kernel: ", "fail  kernel: ")) for line in lines)
    assert lines[-1].startswith("ramet can")
    assert done.stderr == ""


# Becomes nobody after the imports: the checkout and its Python may be closed to other users.
AS_NOBODY = """
import importlib.readers, os
from ramet.daemon.checkup import examine
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(*(finding.code for finding in examine({}, None)))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")
def test_a_plain_user_is_told_what_needs_root() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, check=False, cwd="/"
    )
    found = set(done.stdout.split())
    assert {"firewall_not_seen", "nftables_not_seen"} <= found, done.stderr
    assert not found & {"check_failed", "check_timeout"}


def test_settings_that_are_wrong_fail_and_the_other_checks_go_on(host: MadeHost) -> None:
    host.file("/etc/ramet/config.yaml", "network:\n  subnet_cidr: nonsense\n")
    first, *rest = examine({}, None, host.view())
    assert (first.check, first.level) == ("settings", Level.FAIL)
    assert "subnet_cidr" in first.message
    assert len(rest) > 10


def test_settings_that_are_there_are_used(host: MadeHost) -> None:
    host.file("/etc/ramet/config.yaml", "data_dir: /srv/elsewhere\nnetwork: {dns_servers: [127.0.0.1]}\n")
    first, *rest = examine({}, None, host.view())
    assert (first.code, first.level) == ("settings", Level.OK)
    assert any("/srv/elsewhere" in finding.message for finding in rest)
    assert "dns_loopback" in {finding.code for finding in rest}
