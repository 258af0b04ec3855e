"""How much there is of what instances are admitted to, found on this host or said by the settings.

The ratios say how much more may be promised than there is. Their defaults, and why, are in docs/resources.md.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.admission.demand import Resource
from ramet.admission.ledger import Limit
from ramet.core.errors import Broken
from ramet.core.guest_memory import HostMemory

CPU_RATIO: Final = 128.0
MEMORY_RATIO: Final = 4.0
DISK_RATIO: Final = 20.0
NETWORK_RATIO: Final = 20.0
DISK_IO_RATIO: Final = 20.0

BYTES_PER_S_OF_MBIT: Final = 125_000


class CapacityUnknown(Broken):
    """The kernel does not tell how much memory, or disk, there is."""

    code = "capacity_unknown"


@dataclass(frozen=True, slots=True)
class CapacityConfig:
    """What the settings say; None is found out. How fast disks are nobody tells: there is no limit then."""

    cpu_count: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    network_bytes_per_s: int | None = None
    disk_io_bytes_per_s: int | None = None
    cpu_ratio: float = CPU_RATIO
    memory_ratio: float = MEMORY_RATIO
    disk_ratio: float = DISK_RATIO
    network_ratio: float = NETWORK_RATIO
    disk_io_ratio: float = DISK_IO_RATIO


def host_limits(config: CapacityConfig, data_folder: Path) -> tuple[Limit, ...]:
    """Return the limits of all but the network; that is known when it is open.

    Raises:
        CapacityUnknown: one is neither configured nor told by the kernel.
    """
    cpu = len(os.sched_getaffinity(0)) if config.cpu_count is None else config.cpu_count
    memory = _memory_bytes(Path("/proc/meminfo")) if config.memory_bytes is None else config.memory_bytes
    disk = _disk_bytes(data_folder) if config.disk_bytes is None else config.disk_bytes
    disk_io = config.disk_io_bytes_per_s
    return (
        _limit(Resource.CPU, cpu, config.cpu_ratio, config.cpu_count),
        _limit(Resource.MEMORY, memory, config.memory_ratio, config.memory_bytes),
        _limit(Resource.DISK, disk, config.disk_ratio, config.disk_bytes),
        _limit(Resource.DISK_IO, disk_io, config.disk_io_ratio, disk_io),
    )


def network_limit(
    config: CapacityConfig, uplink: str | None, interfaces: Path = Path("/sys/class/net")
) -> Limit:
    """Return the limit of the network: the rate of `uplink`, each way.

    Many interfaces, most virtual ones among them, do not tell theirs; then there is no limit.
    """
    configured = config.network_bytes_per_s
    found = None if uplink is None else _link_bytes_per_s(interfaces / uplink / "speed")
    return _limit(
        Resource.NETWORK, found if configured is None else configured, config.network_ratio, configured
    )


def _limit(resource: Resource, capacity: int | None, ratio: float, configured: int | None) -> Limit:
    if capacity is None:
        return Limit(resource, None, ratio, "unknown")
    return Limit(resource, capacity, ratio, "detected" if configured is None else "configured")


def host_memory(meminfo: Path = Path("/proc/meminfo")) -> HostMemory:
    """Return how much memory there is, and how much of it somebody new could have (MemAvailable).

    Raises:
        CapacityUnknown: the kernel does not tell.
    """
    return HostMemory(_memory_bytes(meminfo), _memory_bytes(meminfo, "MemAvailable"))


def _memory_bytes(meminfo: Path, fact: str = "MemTotal") -> int:
    """Return a fact of /proc/meminfo, see proc_meminfo(5)."""
    try:
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith(f"{fact}:"))
        return int(line.split()[1]) << 10
    except (OSError, StopIteration, ValueError, IndexError) as error:
        raise CapacityUnknown(
            f"{meminfo} does not tell how much memory there is", remedy="set capacity.memory"
        ) from error


def _disk_bytes(folder: Path) -> int:
    try:
        facts = os.statvfs(folder)
    except OSError as error:
        raise CapacityUnknown(
            f"the size of the file system of {folder} is not told: {error.strerror}",
            remedy="set capacity.disk",
        ) from error
    return facts.f_blocks * facts.f_frsize


def _link_bytes_per_s(speed: Path) -> int | None:
    """Return what an interface's `speed` says, in Mbit/s; -1 or an error where the driver does not know."""
    try:
        mbit_per_s = int(speed.read_text())
    except (OSError, ValueError):
        return None
    return mbit_per_s * BYTES_PER_S_OF_MBIT if mbit_per_s > 0 else None
