"""Room that is enough, scarce, or gone."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from ramet.doctor.capacity import check_cgroups, check_disk, check_memory, judge_disk, judge_limits
from ramet.doctor.findings import Finding
from ramet.doctor.subject import Subject
from tests.doctor.made_host import MadeHost

GIB = 1 << 30
PLENTY = (
    "MemTotal: 33554432 kB\nMemAvailable:   16777216 kB\nHugePages_Total:       0\nHugepagesize: 2048 kB\n"
)


def codes(findings: Iterable[Finding]) -> list[str]:
    return [finding.code for finding in findings]


@pytest.mark.parametrize(
    ("free_bytes", "inodes", "expected"),
    [
        (50 * GIB, 1_000_000, ["disk"]),
        (50 * GIB, None, ["disk"]),
        (5 * GIB, 1_000_000, ["disk_scarce"]),
        (GIB // 2, 1_000_000, ["disk_full"]),
        (50 * GIB, 100, ["disk", "inodes_scarce"]),
    ],
)
def test_disks_are_judged_by_bytes_and_inodes(
    free_bytes: int, inodes: int | None, expected: list[str]
) -> None:
    assert codes(judge_disk(Path("/data"), free_bytes, inodes)) == expected


def test_a_data_folder_that_is_not_there_yet_is_judged_by_the_disk_it_will_be_on(host: MadeHost) -> None:
    [first, *_] = check_disk(Subject(data_dir=Path("/var/lib/ramet")), host.view())
    assert first.check == "disk"
    assert "/var/lib/ramet" in first.message


@pytest.mark.parametrize(
    ("meminfo", "expected"),
    [
        (PLENTY, ["memory"]),
        ("MemAvailable:     524288 kB\n", ["memory_scarce"]),
        ("", ["memory_not_seen"]),
        (PLENTY.replace("HugePages_Total:       0", "HugePages_Total: 512"), ["memory", "hugepages"]),
    ],
)
def test_memory_is_judged_by_what_is_available(host: MadeHost, meminfo: str, expected: list[str]) -> None:
    host.file("/proc/meminfo", meminfo)
    assert codes(check_memory(Subject(), host.view())) == expected


def test_settings_that_make_memory_dear_are_told(host: MadeHost) -> None:
    host.file("/proc/meminfo", PLENTY)
    host.file("/proc/sys/vm/overcommit_memory", "2\n")
    host.file(
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled", "[always] within_size advise never deny force\n"
    )
    assert codes(check_memory(Subject(), host.view())) == ["memory", "overcommit_off", "thp_shmem"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1 << 20, 4_194_304, 65_530), ["limits"]),
        ((None, None, None), ["limits"]),
        ((1024, 32_768, 65_530), ["open_files_low"]),
        ((1024, 4096, 1000), ["open_files_low", "pids_low", "maps_low"]),
    ],
)
def test_each_low_limit_is_told(
    limits: tuple[int | None, int | None, int | None], expected: list[str]
) -> None:
    assert codes(judge_limits(*limits)) == expected


@pytest.mark.parametrize(
    ("controllers", "expected"),
    [
        (None, "cgroups_v1"),
        ("cpuset cpu io memory hugetlb pids", "cgroups"),
        ("cpu pids", "cgroups_incomplete"),
    ],
)
def test_control_groups_are_judged_by_their_controllers(
    host: MadeHost, controllers: str | None, expected: str
) -> None:
    if controllers is not None:
        host.file("/sys/fs/cgroup/cgroup.controllers", controllers)
    assert codes(check_cgroups(Subject(), host.view())) == [expected]
