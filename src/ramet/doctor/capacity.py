"""Room for guests: disk, memory, and the kernel's limits on what many processes need."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ramet.doctor.findings import Finding, fail, info, ok, warn
from ramet.doctor.host import HostView
from ramet.doctor.subject import Subject

DISK_FREE_BYTES_MIN: Final = 1 << 30
DISK_FREE_BYTES_GOOD: Final = 10 << 30
INODES_FREE_MIN: Final = 50_000
MEMORY_FREE_BYTES_GOOD: Final = 2 << 30
OPEN_FILES_GOOD: Final = 65_536  # Each guest holds about a dozen descriptors of the daemon.
PIDS_GOOD: Final = 32_768
MAPS_GOOD: Final = 65_530  # The kernel's default.
BRIDGE_PORTS: Final = 1_000
_OVERCOMMIT_NEVER: Final = 2
_GIB: Final = 1 << 30


def check_disk(subject: Subject, host: HostView) -> Iterator[Finding]:
    """Look at the file system of the data folder, or of where it will be."""
    folder = host.path(subject.data_dir)
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    facts = os.statvfs(folder)
    yield from judge_disk(
        subject.data_dir, facts.f_bavail * facts.f_frsize, facts.f_favail if facts.f_files else None
    )


def judge_disk(folder: Path, free_bytes: int, free_inode_count: int | None) -> Iterator[Finding]:
    """Say whether that is enough; a file system without inodes tells None."""
    shown = f"{free_bytes / _GIB:.1f} GiB free for {folder}"
    remedy = f"free some of `df -h {folder}`, or move data_dir to a larger disk"
    if free_bytes < DISK_FREE_BYTES_MIN:
        yield fail("disk", "disk_full", f"only {shown}", remedy)
    elif free_bytes < DISK_FREE_BYTES_GOOD:
        yield warn("disk", "disk_scarce", f"only {shown}", remedy)
    else:
        yield ok("disk", "disk", shown)
    if free_inode_count is not None and free_inode_count < INODES_FREE_MIN:
        yield warn(
            "disk",
            "inodes_scarce",
            f"only {free_inode_count} inodes are free for {folder}; an image takes one for each of its files",
            f"free some of `df -i {folder}`",
        )


def check_memory(_: Subject, host: HostView) -> Iterator[Finding]:
    """Look at free memory, and at settings that make it less than it seems."""
    facts = {
        key: int(rest.split()[0])
        for key, __, rest in (line.partition(":") for line in (host.read("/proc/meminfo") or "").splitlines())
        if rest.split()
    }
    available = facts.get("MemAvailable")
    if available is None:
        yield info("memory", "memory_not_seen", "/proc/meminfo does not tell how much memory is available")
    elif available << 10 < MEMORY_FREE_BYTES_GOOD:
        yield warn(
            "memory",
            "memory_scarce",
            f"only {(available << 10) / _GIB:.1f} GiB of memory are available; captures are kept in memory",
            "stop what you do not need, or add memory",
        )
    else:
        yield ok("memory", "memory", f"{(available << 10) / _GIB:.1f} GiB of memory are available")
    if host.read_number("/proc/sys/vm/overcommit_memory") == _OVERCOMMIT_NEVER:
        yield warn(
            "memory",
            "overcommit_off",
            "memory is not overcommitted: every fork is charged with all of its source's memory",
            "sysctl -w vm.overcommit_memory=0",
        )
    shmem = host.read("/sys/kernel/mm/transparent_hugepage/shmem_enabled") or ""
    if "[always]" in shmem or "[force]" in shmem:
        yield warn(
            "memory",
            "thp_shmem",
            "captures are made of huge pages: what little a guest used becomes much",
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        )
    if pages := facts.get("HugePages_Total"):
        size_kib = facts.get("Hugepagesize", 2048)
        yield info(
            "memory",
            "hugepages",
            f"{pages * size_kib / (1 << 20):.1f} GiB are set aside as huge pages, unused by ramet",
        )


def check_limits(_: Subject, host: HostView) -> Iterator[Finding]:
    """Look at limits of this process and of the kernel."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    yield from judge_limits(
        None if hard == resource.RLIM_INFINITY else hard,
        host.read_number("/proc/sys/kernel/pid_max"),
        host.read_number("/proc/sys/vm/max_map_count"),
    )
    yield info(
        "limits", "bridge_ports", f"one bridge takes {BRIDGE_PORTS} guests, Linux allows it 1023 ports"
    )


def judge_limits(open_files: int | None, pid_max: int | None, max_map_count: int | None) -> Iterator[Finding]:
    """Say which limit is low; None is no limit, or one that is not told."""
    trouble = False
    if open_files is not None and open_files < OPEN_FILES_GOOD:
        trouble = True
        yield warn(
            "limits",
            "open_files_low",
            f"a process may have {open_files} files open, which is enough for some {open_files // 12} guests",
            f"ulimit -n {OPEN_FILES_GOOD}, or LimitNOFILE= in the unit (ramet setup writes it)",
        )
    if pid_max is not None and pid_max < PIDS_GOOD:
        trouble = True
        yield warn(
            "limits", "pids_low", f"kernel.pid_max is {pid_max}", f"sysctl -w kernel.pid_max={PIDS_GOOD}"
        )
    if max_map_count is not None and max_map_count < MAPS_GOOD:
        trouble = True
        yield warn(
            "limits",
            "maps_low",
            f"vm.max_map_count is {max_map_count}",
            f"sysctl -w vm.max_map_count={MAPS_GOOD}",
        )
    if not trouble:
        yield ok("limits", "limits", "open files, process ids and mappings are enough for many guests")


def check_cgroups(_: Subject, host: HostView) -> Iterator[Finding]:
    """Tell whether limits could be set on a VMM from outside."""
    controllers = host.read("/sys/fs/cgroup/cgroup.controllers")
    wanted = {"cpu", "memory", "pids"}
    if controllers is None:
        yield info(
            "cgroups",
            "cgroups_v1",
            "control groups are version 1: a VMM gets no limits of its own from systemd",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    elif missing := wanted - set(controllers.split()):
        yield info("cgroups", "cgroups_incomplete", f"control groups lack {', '.join(sorted(missing))}")
    else:
        yield ok("cgroups", "cgroups", "control groups, version 2, with cpu, memory and pids")
