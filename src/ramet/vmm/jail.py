"""The jail: a VMM that its guest took over has nothing in its hands but that guest's own.

Each process has a user of its own and sees its instance's folder, the folder of the disk layers, of which it
may open its own, the files it boots from, the program, and the devices it needs; nothing else of the host. It
may make files in its folder only until its guest runs, so none of ours ever follows a link that a guest laid.

Files that it is to read or write later, and cannot be given by a path of the jail (a capture is a memfd), are
held open by a small process of its own user, and reached by /proc.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog

from ramet.core.errors import Broken
from ramet.linux import jail_exec
from ramet.linux.cgroup import Cgroup, CgroupTree, find_mount
from ramet.linux.tun import give_tap
from ramet.vmm.port import Machine
from ramet.vmm.raw_overlay import read_by, written_by

UID_FIRST: Final = 1_900_000_000
"""systemd's list of users leaves 1,879,048,192 and up to nobody."""
UID_COUNT: Final = 1 << 16
TASK_COUNT_MAX: Final = 128
"""Threads of one process, beyond its processors: the API's, the guest's memory's, io_uring's workers."""
_HELPER: Final = jail_exec.__file__
_KVM: Final = "/dev/kvm"
_TUN: Final = "/dev/net/tun"
USERFAULTFD: Final = "/dev/userfaultfd"
_URANDOM: Final = "/dev/urandom"
_LIBRARIES: Final = (Path("/lib"), Path("/lib64"), Path("/usr/lib"))
_ELF_HEADER_BYTES: Final = 4096
_PROBE_TIMEOUT_S: Final = 30.0
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin"}

log = structlog.get_logger(__name__)

_turns = itertools.count()
"""Of all jails together: one that has just been given a user is not seen to have it yet."""


class JailMode(StrEnum):
    """Whether a VMM is put into a jail."""

    AUTO = "auto"  # Where this host lets us.
    ON = "on"  # Or it is not started.
    OFF = "off"


@dataclass(frozen=True, slots=True)
class JailConfig:
    """How jails are made.

    Attributes:
        uid_first: of 65,536 users that are nobody else's. The first is the group of what all may read.
        program_folders: what the program needs beside itself, instead of the system's libraries.
    """

    mode: JailMode = JailMode.AUTO
    uid_first: int = UID_FIRST
    program_folders: tuple[Path, ...] = ()


class Cell:
    """The jail of one process: its user, `uid`, which is its group too."""

    def __init__(self, uid: int, shared_gid: int, folder: Path) -> None:
        self.uid, self._shared_gid, self._folder = uid, shared_gid, folder

    def let_in(self) -> None:
        """Let it make files in its folder."""
        os.chown(self._folder, self.uid, self.uid)

    def keep_out(self) -> None:
        """Let it make no more files in its folder, nor remove any."""
        os.chown(self._folder, os.geteuid(), os.getegid())
        self.let_pass(self._folder)

    def own(self, file: Path, mode: int = 0o600) -> None:
        """Let it, and nobody else, read and write `file`; or make files in a folder, of mode 0o700.

        Raises:
            OSError: the kernel refuses; ELOOP: another jail has left a symbolic link in its place.
        """
        with _opened(file) as fd:
            os.fchown(fd, self.uid, self.uid)
            os.fchmod(fd, mode)

    def disown(self, file: Path) -> None:
        """Take `file`, or a folder, back. Errors as of `own`."""
        os.chown(file, os.geteuid(), os.getegid(), follow_symlinks=False)

    def let_read(self, file: int | Path) -> None:
        """Let every cell read `file`, if it can reach it at all. Errors as of `own`."""
        with _opened(file) if isinstance(file, Path) else nullcontext(file) as fd:
            mode = os.fstat(fd).st_mode & 0o7777
            if not mode & 0o004:
                os.fchown(fd, -1, self._shared_gid)
                os.fchmod(fd, mode | 0o040)

    def let_pass(self, folder: Path) -> None:
        """Let every cell reach what is in `folder` by its name, without telling it. Errors as of `own`."""
        with _opened(folder) as fd:
            os.fchmod(fd, 0o711)

    @contextmanager
    def written(self, *fds: int) -> Iterator[list[str]]:
        """Inside, the process can write the open files `fds`; yields the paths by which it can open them.

        Raises:
            OSError: the helper does not start.
        """
        for fd in fds:
            os.fchown(fd, self.uid, self.uid)
        try:
            with self.reached(*fds) as paths:
                yield paths
        finally:
            for fd in fds:
                os.fchown(fd, os.geteuid(), os.getegid())

    @contextmanager
    def reached(self, *fds: int) -> Iterator[list[str]]:
        """Inside, the process can open the open files `fds` by the paths that are yielded.

        Raises:
            OSError: the helper does not start.
        """
        helper = subprocess.Popen(
            [
                "setpriv",
                f"--reuid={self.uid}",
                f"--regid={self.uid}",
                f"--groups={self._shared_gid}",
                "--no-new-privs",
                "cat",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
        )
        assert helper.stdin is not None
        assert helper.stdout is not None
        try:
            helper.stdin.write(b"\n")
            helper.stdin.flush()
            if helper.stdout.read(1) != b"\n":  # It echoes when it is `cat`, and so of that user.
                raise ChildProcessError("setpriv does not run")
            yield [f"/proc/{helper.pid}/fd/{fd}" for fd in fds]
        finally:
            helper.kill()
            helper.communicate()


class Jail:
    """Makes cells for one program."""

    def __init__(self, program: Path, config: JailConfig, cgroups: CgroupTree | None) -> None:
        self._program, self._config, self._cgroups = program, config, cgroups
        self._binds = [(program, "run")]
        folders = config.program_folders or (_LIBRARIES if _is_dynamic(program) else ())
        self._binds += [(folder, "run") for folder in folders if folder.exists()]

    @classmethod
    def open(
        cls, hypervisor: str, program: Path, config: JailConfig, environment: Mapping[str, str] | None
    ) -> "Jail | None":
        """Try whether `program` runs in a jail; None if it is to have none, or this host lets us make none.

        Raises:
            Broken: it must have one, and cannot.
        """
        if config.mode is JailMode.OFF:
            return None
        refusal: str | None = "that takes root"
        if os.geteuid() == 0:
            try:
                jail = cls(program, config, _open_cgroups())
                refusal = jail._try(environment)
                if refusal is None:
                    return jail
            except (OSError, subprocess.SubprocessError) as error:
                refusal = str(error)
        if config.mode is JailMode.ON:
            raise Broken(
                f"{program} cannot be put into a jail: {refusal}",
                remedy=f"set {setting_of(hypervisor)} to auto or off, or give the daemon what it lacks",
            )
        log.info("hypervisor_without_jail", hypervisor=hypervisor, reason=refusal)
        return None

    def _try(self, environment: Mapping[str, str] | None) -> str | None:
        """Return why the program tells no version in a jail, if it does not."""
        if shutil.which("setpriv") is None:
            return "setpriv is not installed"
        with tempfile.TemporaryDirectory(prefix="ramet-jail-") as name:
            folder = Path(name)
            cell = Cell(self._free_uid(), self._config.uid_first, folder)
            cell.let_in()
            argv = [str(self._program), "--version"]
            command = self._command(cell, folder, [(folder, "write")], [_KVM, _URANDOM], None, argv)
            done = subprocess.run(
                command,
                cwd=folder,
                env=self.environment(environment),
                capture_output=True,
                text=True,
                timeout=_PROBE_TIMEOUT_S,
            )
        return None if done.returncode == 0 else (done.stderr or done.stdout).strip()

    def environment(self, given: Mapping[str, str] | None) -> Mapping[str, str]:
        """Return that of a process: nothing of ours, which has secrets, unless it is given."""
        return _ENVIRONMENT if given is None else given

    def admit(self, machine: Machine, owned: Sequence[Path], inherited: Sequence[int]) -> Cell:
        """Make the cell of `machine`: `owned` files of its folder are its to write, `inherited` ones to read.

        Raises:
            OSError: a file or the TAP cannot be given.
        """
        cell = Cell(self._free_uid(), self._config.uid_first, machine.folder)
        tops = written_by(machine)
        for path in (*owned, *tops):
            cell.own(path)
        for path in _read(machine):
            cell.let_read(path)
        for fd in inherited:
            cell.let_read(fd)
        for path in tops:
            cell.let_pass(path.parent)
        if machine.nic is not None and machine.nic.tap_name is not None:
            give_tap(machine.nic.tap_name, cell.uid)
        cell.let_in()
        return cell

    def command(
        self, cell: Cell, machine: Machine, argv: Sequence[str], devices: Sequence[str] = ()
    ) -> list[str]:
        """Return what starts `argv` in `cell`, as root, in the machine's folder.

        It has `devices` beside those that every VMM needs, and that of a TAP which it opens by name.
        """
        binds = [(machine.folder, "write"), *((path.parent, "write") for path in written_by(machine))]
        binds += [(path, "read") for path in _read(machine)]
        needed = [_KVM, _URANDOM, *devices]
        if machine.nic is not None and machine.nic.tap_name is not None:
            needed.append(_TUN)
        group: Cgroup | None = None
        if self._cgroups is not None:
            self._cgroups.remove_empty()
            vcpu_count = machine.vcpu_count_max or machine.vcpu_count  # Such as it may come to have.
            cpu_count = vcpu_count + 1  # And one for its own threads.
            task_count = vcpu_count + TASK_COUNT_MAX
            group = self._cgroups.plan(machine.instance, cpu_count=cpu_count, task_count_max=task_count)
        return self._command(cell, machine.folder, binds, needed, group, argv)

    def _command(
        self,
        cell: Cell,
        folder: Path,
        binds: Sequence[tuple[Path, str]],
        devices: Sequence[str],
        group: Cgroup | None,
        argv: Sequence[str],
    ) -> list[str]:
        plan = {
            "uid": cell.uid,
            "gid": cell.uid,
            "groups": [self._config.uid_first],
            "folder": str(folder),
            "binds": [(str(path), use) for path, use in _without_inner([*binds, *self._binds])],
            "devices": {path: _numbers(path) for path in devices if os.path.exists(path)},
            "cgroup": None if group is None else {"folder": str(group.folder), "limits": dict(group.limits)},
        }
        return [sys.executable, "-I", "-S", _HELPER, json.dumps(plan), *argv]

    def _free_uid(self) -> int:
        taken = set(_users())
        for _ in range(UID_COUNT):
            uid = self._config.uid_first + 1 + next(_turns) % (UID_COUNT - 1)
            if uid not in taken:
                return uid
        raise OSError("each user for jails is in use")


def setting_of(hypervisor: str) -> str:
    """Return the name of the setting that says whether that hypervisor is put into a jail."""
    return f"hypervisor.{hypervisor.replace('-', '_')}_jail"


def cell_of(pid: int, folder: Path, uid_first: int) -> Cell | None:
    """Return the cell of a process that was found; None if it is in none.

    Raises:
        OSError: it is gone.
    """
    uid = os.stat(f"/proc/{pid}").st_uid
    return Cell(uid, uid_first, folder) if uid_first < uid < uid_first + UID_COUNT else None


def _read(machine: Machine) -> list[Path]:
    """Return the files that `machine` reads, others as well."""
    return [machine.kernel, machine.initramfs, machine.root, machine.config, *read_by(machine)]


def _users() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                yield entry.stat().st_uid


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """Open a file or a folder that is none of another, whoever could write where it lies.

    Raises:
        OSError: the kernel refuses; ELOOP: it is a symbolic link.
    """
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_cgroups() -> CgroupTree | None:
    mount = find_mount()
    return None if mount is None else CgroupTree.open(mount)


def _is_dynamic(program: Path) -> bool:
    """Tell whether the program names a loader, which is a path in its first page."""
    with program.open("rb") as file:
        return b"/ld-" in file.read(_ELF_HEADER_BYTES)


def _without_inner(binds: Sequence[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
    """Leave out what lies in another folder of them, and so is there with it."""
    paths = {path for path, _ in binds}
    for path, use in dict(reversed(binds)).items():  # Of two uses of one path, the first counts.
        if not any(parent in paths for parent in path.parents):
            yield path, use


def _numbers(device: str) -> tuple[int, int]:
    number = os.stat(device).st_rdev
    return os.major(number), os.minor(number)
