"""How much there is: told by the kernel, or by the settings."""

import os
from pathlib import Path

import pytest

from ramet.admission.capacity import (
    NETWORK_RATIO,
    CapacityConfig,
    CapacityUnknown,
    host_limits,
    network_limit,
)
from ramet.admission.demand import Resource
from ramet.admission.ledger import Limit


def test_the_host_is_asked_for_what_is_not_configured(tmp_path: Path) -> None:
    cpu, memory, disk, disk_io = host_limits(CapacityConfig(), tmp_path)
    page_count, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    assert (cpu.capacity, cpu.source) == (len(os.sched_getaffinity(0)), "detected")
    assert memory.capacity is not None
    assert abs(memory.capacity - page_count * page_bytes) < 1 << 20
    facts = os.statvfs(tmp_path)
    assert disk.capacity == facts.f_blocks * facts.f_frsize
    assert (disk_io.capacity, disk_io.effective, disk_io.source) == (None, None, "unknown")


def test_what_is_configured_is_not_looked_for() -> None:
    config = CapacityConfig(
        cpu_count=3, memory_bytes=10, disk_bytes=20, disk_io_bytes_per_s=30, cpu_ratio=2.0, memory_ratio=0.5
    )
    assert host_limits(config, Path("/nowhere")) == (
        Limit(Resource.CPU, 3, 2.0, "configured"),
        Limit(Resource.MEMORY, 10, 0.5, "configured"),
        Limit(Resource.DISK, 20, config.disk_ratio, "configured"),
        Limit(Resource.DISK_IO, 30, config.disk_io_ratio, "configured"),
    )


def test_a_file_system_that_cannot_be_asked_is_told_with_the_setting_that_mends_it() -> None:
    with pytest.raises(CapacityUnknown, match=r"capacity\.disk"):
        host_limits(CapacityConfig(), Path("/nowhere"))


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        ("10000\n", Limit(Resource.NETWORK, 1_250_000_000, NETWORK_RATIO)),
        ("-1\n", Limit(Resource.NETWORK, None, NETWORK_RATIO, "unknown")),
        (None, Limit(Resource.NETWORK, None, NETWORK_RATIO, "unknown")),
    ],
)
def test_an_uplink_tells_its_rate_or_there_is_no_limit(
    tmp_path: Path, speed: str | None, expected: Limit
) -> None:
    (tmp_path / "eth0").mkdir()
    if speed is not None:
        (tmp_path / "eth0" / "speed").write_text(speed)
    assert network_limit(CapacityConfig(), "eth0", tmp_path) == expected


def test_without_an_uplink_only_the_settings_know_a_rate() -> None:
    assert network_limit(CapacityConfig(), None).effective is None
    config = CapacityConfig(network_bytes_per_s=100)
    assert network_limit(config, None) == Limit(Resource.NETWORK, 100, NETWORK_RATIO, "configured")


def test_two_cores_and_eight_gigabytes_have_room_for_a_hundred_forks_of_a_small_guest() -> None:
    """What the defaults are for: a 1-vCPU guest of 256 MB with the default disk, and a capture of it."""
    config = CapacityConfig(cpu_count=2, memory_bytes=8 << 30, disk_bytes=64 << 30)
    cpu, memory, disk, _ = (limit.effective for limit in host_limits(config, Path("/")))
    assert cpu is not None
    assert memory is not None
    assert disk is not None
    assert cpu >= 101
    assert memory >= 102 * (256 << 20)
    assert disk >= 101 * (10 << 30)
