"""Control groups, version 2: limits on what a process and its children take.

A controller is there for us only if it is not bound to version 1: a host may have version 2 without any.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ramet.linux.process import PROC

CPU_PERIOD_US: Final = 100_000  # The kernel's default of cpu.max.
WANTED: Final = ("cpu", "pids")
_FOLDER: Final = "ramet"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A group and its limits, by the kernel's files in its folder (cgroup-v2.rst)."""

    folder: Path
    limits: Mapping[str, str]


class CgroupTree:
    """Our own part of the hierarchy, with a group for each VMM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, mount: Path) -> Self | None:
        """Make our part under `mount`; None if it has no controllers for us.

        Raises:
            OSError: they are there, and the kernel refuses them to us.
        """
        offered = (mount / "cgroup.controllers").read_text().split()
        if not set(WANTED) <= set(offered):
            return None
        folder, wanted = mount / _FOLDER, " ".join(f"+{name}" for name in WANTED)
        (mount / "cgroup.subtree_control").write_text(wanted)
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.subtree_control").write_text(wanted)
        return cls(folder)

    def plan(self, name: str, *, cpu_count: int, task_count_max: int) -> Cgroup:
        """Return a group of at most so many threads, on at most so many processors, made by who enters it."""
        cpu_max = f"{cpu_count * CPU_PERIOD_US} {CPU_PERIOD_US}"
        return Cgroup(self.folder / name, {"pids.max": str(task_count_max), "cpu.max": cpu_max})

    def remove_empty(self) -> None:
        """Remove the groups of those that have ended; who is about to enter one makes it again."""
        for group in self.folder.iterdir():
            with suppress(OSError):  # EBUSY: somebody is in it. ENOENT: somebody else removed it.
                if group.is_dir():
                    group.rmdir()


def find_mount() -> Path | None:
    """Return where version 2 is mounted, if anywhere."""
    for line in (PROC / "self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    return None
