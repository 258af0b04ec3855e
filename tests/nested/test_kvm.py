"""The main job with KVM, in a host within: the one outside may have none that runs a stock kernel."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.nested.host import NestedFailed, run_within, why_not

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(500),
]
TIMEOUT_S = 480.0
FIRECRACKER = {"RAMET_HYPERVISOR__DEFAULT": "firecracker"}
WITH_FIRECRACKER = pytest.mark.skipif(
    "RAMET_FIRECRACKER" not in os.environ, reason="RAMET_FIRECRACKER names no Firecracker"
)
PACKAGE = Path(os.environ.get("RAMET_KERNEL_PACKAGE", ""))


def run_demo(variables: Mapping[str, str]) -> dict[str, Any]:
    command = [sys.executable, "examples/demo.py", "--count", "2", "--json"]
    lines: list[str] = []
    status = run_within(
        command, kernel_package=PACKAGE, timeout_s=TIMEOUT_S, say=lines.append, variables=variables
    )
    assert status == 0, "\n".join(lines)
    return dict(json.loads(lines[-1]))


def test_the_demo_forks_with_kvm() -> None:
    report = run_demo({})
    assert report["accelerator"] == "kvm"
    assert report["forks"]["succeeded"] == report["forks"]["count"] == 2


@WITH_FIRECRACKER
def test_the_demo_forks_with_firecracker() -> None:
    report = run_demo(FIRECRACKER)
    assert report["forks"]["succeeded"] == report["forks"]["count"] == 2


@WITH_FIRECRACKER
def test_an_instance_on_firecracker_sleeps_twice_and_outlives_the_daemon() -> None:
    command = ["unshare", "--net", "bash", "tests/nested/life.sh"]
    lines: list[str] = []
    status = run_within(
        command, kernel_package=PACKAGE, timeout_s=TIMEOUT_S, say=lines.append, variables=FIRECRACKER
    )
    assert (status, lines[-1:]) == (0, ["whole"]), "\n".join(lines)


def test_a_host_within_that_is_cut_short_is_a_failure_with_its_last_words() -> None:
    with pytest.raises(NestedFailed, match="last words"):
        run_within(["sleep", "600"], kernel_package=PACKAGE, timeout_s=10, say=print)


def test_the_exit_status_of_the_command_is_told() -> None:
    lines: list[str] = []
    command = ["sh", "-c", "test -c /dev/kvm && cat /sys/fs/cgroup/cgroup.controllers; exit 7"]
    assert run_within(command, kernel_package=PACKAGE, timeout_s=TIMEOUT_S, say=lines.append) == 7
    assert {"cpu", "memory", "pids"} <= set(" ".join(lines).split())
