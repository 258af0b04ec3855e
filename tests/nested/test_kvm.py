"""The main job with KVM, in a host within: the one outside may have none that runs a stock kernel."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.nested import host
from tests.nested.host import STALL_S, HostStalled, NestedFailed, run_within, why_not

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(500),
]
TIMEOUT_S = 480.0
NEEDED = {"firecracker": "RAMET_FIRECRACKER", "cloud-hypervisor": "RAMET_CLOUD_HYPERVISOR"}
ON_EACH_INSTALLED = pytest.mark.parametrize(
    "hypervisor",
    [
        pytest.param(name, marks=pytest.mark.skipif(variable not in os.environ, reason=f"no {variable}"))
        for name, variable in NEEDED.items()
    ],
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


@ON_EACH_INSTALLED
def test_the_demo_forks_with(hypervisor: str) -> None:
    report = run_demo({"RAMET_HYPERVISOR__DEFAULT": hypervisor})
    assert report["forks"]["succeeded"] == report["forks"]["count"] == 2


@ON_EACH_INSTALLED
def test_an_instance_sleeps_twice_and_outlives_the_daemon_with(hypervisor: str) -> None:
    run_script(["bash", "tests/nested/life.sh"], hypervisor)


@pytest.mark.timeout(920)
@ON_EACH_INSTALLED
def test_volumes_limited_disks_and_a_wake_by_traffic_with(hypervisor: str) -> None:
    run_script([sys.executable, "-m", "tests.nested.features"], hypervisor, timeout_s=900.0)


@pytest.mark.skipif("RAMET_FIRECRACKER" not in os.environ, reason="no RAMET_FIRECRACKER")
def test_a_firecracker_wakes_from_packed_memory_and_ends_with_its_pager() -> None:
    run_script(["bash", "tests/nested/paged.sh"], "firecracker")


def run_script(command: Sequence[str], hypervisor: str, timeout_s: float = TIMEOUT_S) -> None:
    """Run a script of this folder, which must say at its end that all is whole."""
    lines: list[str] = []
    status = run_within(
        ["unshare", "--net", *command],
        kernel_package=PACKAGE,
        timeout_s=timeout_s,
        say=lines.append,
        variables={"RAMET_HYPERVISOR__DEFAULT": hypervisor},
    )
    assert (status, lines[-1:]) == (0, ["whole"]), "\n".join(lines)


@pytest.mark.skipif("RAMET_CLOUD_HYPERVISOR" not in os.environ, reason="no RAMET_CLOUD_HYPERVISOR")
def test_a_guest_and_its_children_grow_and_shrink_with_cloud_hypervisor() -> None:
    lines: list[str] = []
    status = run_within(
        [sys.executable, "-m", "tests.nested.size"],
        kernel_package=PACKAGE,
        timeout_s=TIMEOUT_S,
        say=lines.append,
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


def test_a_host_within_that_stands_still_panics_and_all_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ("softlockup_panic", "watchdog_thresh", "panic_on_rcu_stall")
    files = " ".join(f"/proc/sys/kernel/{name}" for name in limits)
    rcu = "/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout"
    dies = f"echo '<0>{host.STALLS[0]}' >/dev/kmsg; echo b >/proc/sysrq-trigger"
    command = ["sh", "-c", f"cat {files} {rcu}; {dies}"]
    monkeypatch.setattr(host, "ATTEMPTS_MAX", 2)
    lines: list[str] = []
    with pytest.raises(HostStalled):
        run_within(command, kernel_package=PACKAGE, timeout_s=TIMEOUT_S, say=lines.append)
    told = ["1", str(STALL_S // 2), "1", str(STALL_S)]
    assert lines[:4] == told
    assert lines[4].startswith("once more: ")
    assert lines[-4:] == told
