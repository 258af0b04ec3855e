"""What a VMM in its jail is, has and sees; and what becomes of it where there can be none."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.core.errors import Broken
from ramet.linux import jail_exec
from ramet.linux.cgroup import CgroupTree
from ramet.linux.jail_exec import EXIT_FAILED
from ramet.vmm.firecracker.driver import FirecrackerDriver
from ramet.vmm.jail import UID_COUNT, UID_FIRST, Cell, Jail, JailConfig, JailMode, cell_of
from tests.vmm.fake_rest_bench import NEEDED

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="a jail takes root")
SHELL = Path("/bin/sh")
CONFIG = JailConfig(JailMode.ON, program_folders=NEEDED)


class ShellJail:
    """A jail in which a shell runs instead of a VMM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jail = Jail(SHELL, CONFIG, None)
        self.cell = Cell(self.jail._free_uid(), UID_FIRST, folder)

    def command(self, text: str, binds: list[tuple[Path, str]] | None = None) -> list[str]:
        argv = [str(SHELL), "-c", text]
        paths = binds or [(self.folder, "write")]
        return self.jail._command(self.cell, self.folder, paths, ["/dev/urandom"], None, argv)

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(text), cwd=self.folder, capture_output=True, text=True)


@pytest.fixture
def shell(tmp_path: Path) -> ShellJail:
    return ShellJail(tmp_path)


@AS_ROOT
def test_it_has_a_user_of_its_own_and_no_power(shell: ShellJail) -> None:
    told = shell.run("cat /proc/self/status").stdout
    status = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
    own = str(shell.cell.uid)
    assert status["Uid"].split() == status["Gid"].split() == [own] * 4
    assert set(status["Groups"].split()) == {str(UID_FIRST)}
    assert status["NoNewPrivs"] == "1"
    assert all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"))


@AS_ROOT
def test_it_sees_nothing_of_the_host_but_what_it_is_given(shell: ShellJail) -> None:
    assert set(shell.run("ls /").stdout.split()) <= {
        "proc",
        "dev",
        *(path.parts[1] for path in (*NEEDED, shell.folder)),
    }
    assert shell.run("ls /dev").stdout.split() == ["urandom"]
    assert "No such file" in shell.run("cat /etc/shadow").stderr
    others = [name for name in shell.run("ls /proc").stdout.split() if name.isdecimal()]
    assert str(os.getpid()) not in others
    assert "Read-only" in shell.run("touch /new").stderr
    assert "Read-only" in shell.run("touch /usr/new").stderr


@AS_ROOT
def test_it_makes_files_in_its_folder_only_while_it_may(shell: ShellJail) -> None:
    shell.cell.let_in()
    assert shell.run("touch here").returncode == 0
    shell.cell.keep_out()
    assert shell.run("touch there").returncode != 0
    assert shell.run("rm -f here").returncode != 0
    assert shell.run("ln -s /etc/passwd console.log").returncode != 0
    assert [path.name for path in shell.folder.iterdir()] == ["here"]


@AS_ROOT
def test_its_working_directory_is_known_by_its_path_outside(shell: ShellJail) -> None:
    process = subprocess.Popen(
        shell.command("echo; read line"),
        cwd=shell.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert os.readlink(f"/proc/{process.pid}/cwd") == str(shell.folder)
    cell = cell_of(process.pid, shell.folder, UID_FIRST)
    assert cell is not None
    assert cell.uid == shell.cell.uid
    assert cell_of(os.getpid(), shell.folder, UID_FIRST) is None
    assert shell.jail._free_uid() != shell.cell.uid
    process.communicate(b"\n")


@AS_ROOT
def test_of_a_folder_of_layers_it_opens_its_own_and_cannot_list_them(
    shell: ShellJail, tmp_path: Path
) -> None:
    layers = tmp_path.parent / "layers"
    layers.mkdir(exist_ok=True)
    for name in ("own", "other"):
        (layers / name).write_text(name)
        (layers / name).chmod(0o600)
    shell.cell.own(layers / "own")
    shell.cell.let_pass(layers)

    def run(text: str) -> subprocess.CompletedProcess[str]:
        binds = [(shell.folder, "write"), (layers, "write")]
        command = shell.command(text, binds)
        return subprocess.run(command, cwd=shell.folder, capture_output=True, text=True)

    assert run(f"cat {layers}/own").stdout == "own"
    assert run(f"cat {layers}/other").returncode != 0
    assert run(f"ls {layers}").returncode != 0
    shell.cell.disown(layers / "own")
    assert run(f"cat {layers}/own").returncode != 0


@AS_ROOT
def test_what_an_earlier_jail_has_led_elsewhere_is_not_given(shell: ShellJail, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (shell.folder / "console.log").symlink_to(secret)
    with pytest.raises(OSError):
        shell.cell.own(shell.folder / "console.log")
    assert secret.stat().st_uid == os.geteuid()


@AS_ROOT
def test_a_link_that_a_jail_has_left_makes_nothing_else_readable_or_ours(
    shell: ShellJail, tmp_path: Path
) -> None:
    secret, inner = tmp_path / "secret", tmp_path / "inner"
    secret.write_text("secret")
    secret.chmod(0o600)
    os.chown(secret, 1234, 1234)
    inner.mkdir(mode=0o700)
    link, folder_link = shell.folder / "link", shell.folder / "folder"
    link.symlink_to(secret)
    folder_link.symlink_to(inner)
    with pytest.raises(OSError):
        shell.cell.let_read(link)
    with pytest.raises(OSError):
        shell.cell.let_pass(folder_link)
    shell.cell.disown(link)  # Of the link, nobody asks whose it is.
    found = secret.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 1234, 0o600)
    assert inner.stat().st_mode & 0o777 == 0o700


@AS_ROOT
def test_an_open_file_of_ours_is_lent_by_path_and_taken_back(shell: ShellJail) -> None:
    fd = os.memfd_create("lent", os.MFD_CLOEXEC)
    os.fchmod(fd, 0o600)
    try:
        with shell.cell.written(fd) as (path,):
            assert shell.run(f"echo yes > {path}").returncode == 0
        assert os.pread(fd, 8, 0) == b"yes\n"
        assert os.fstat(fd).st_uid == os.geteuid()
        assert not Path(path).exists()
        with shell.cell.reached(fd) as (path,):
            assert shell.run(f"cat {path}").returncode != 0
            shell.cell.let_read(fd)
            assert shell.run(f"cat {path}").stdout == "yes\n"
    finally:
        os.close(fd)


@AS_ROOT
def test_what_cannot_be_given_ends_it_with_a_reason(shell: ShellJail) -> None:
    command = shell.command("true", [(shell.folder, "write"), (shell.folder.parent / "nowhere", "read")])
    done = subprocess.run(command, cwd=shell.folder, capture_output=True, text=True)
    assert done.returncode == EXIT_FAILED
    assert "the jail cannot be made: No such file or directory" in done.stderr


@AS_ROOT
def test_a_program_that_runs_in_no_jail_is_refused_or_runs_outside(tmp_path: Path) -> None:
    program = tmp_path / "firecracker"
    program.write_text("#!/bin/sh\necho Firecracker v1.16.1\n")
    program.chmod(0o755)
    environment = {"RAMET_FIRECRACKER": str(program), "PATH": os.environ["PATH"]}
    nothing = JailConfig(JailMode.ON, program_folders=(tmp_path,))  # No shell in there.
    with pytest.raises(Broken, match="cannot be put into a jail") as refused:
        FirecrackerDriver.open(tmp_path, environment=environment, jail=nothing)
    assert "hypervisor.firecracker_jail" in str(refused.value)
    outside = replace(nothing, mode=JailMode.AUTO)
    assert not FirecrackerDriver.open(tmp_path, environment=environment, jail=outside).is_jailed
    assert FirecrackerDriver.open(tmp_path, environment=environment, jail=CONFIG).is_jailed
    off = replace(CONFIG, mode=JailMode.OFF)
    assert not FirecrackerDriver.open(tmp_path, environment=environment, jail=off).is_jailed


def test_users_are_given_in_turn_and_none_twice_soon() -> None:
    jails = [Jail(SHELL, CONFIG, None) for _ in range(2)]  # Of two hypervisors.
    given = [jail._free_uid() for _ in range(100) for jail in jails]
    assert len(set(given)) == len(given)
    assert all(UID_FIRST < uid < UID_FIRST + UID_COUNT for uid in given)


def hierarchy(folder: Path, controllers: str) -> Path:
    (folder / "cgroup.controllers").write_text(controllers)
    return folder


def test_a_group_has_limits_where_there_are_controllers(tmp_path: Path) -> None:
    tree = CgroupTree.open(hierarchy(tmp_path, "cpu memory pids"))
    assert tree is not None
    group = tree.plan("one", cpu_count=3, task_count_max=130)
    assert group.limits == {"cpu.max": "300000 100000", "pids.max": "130"}
    assert (tree.folder / "cgroup.subtree_control").read_text() == "+cpu +pids"
    empty, entered = tree.folder / "ended", tree.folder / "entered"
    empty.mkdir()
    entered.mkdir()
    (entered / "cgroup.procs").touch()  # Stands for somebody in it.
    tree.remove_empty()
    assert not empty.exists()
    assert entered.exists()


def test_a_group_that_a_sweep_takes_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = CgroupTree.open(hierarchy(tmp_path, "cpu memory pids"))
    assert tree is not None
    swept: list[str] = []
    write = jail_exec._write

    def write_after_a_sweep(path: str, text: str) -> None:
        if not swept:
            tree.remove_empty()
            swept.append(path)
        write(path, text)

    monkeypatch.setattr(jail_exec, "_write", write_after_a_sweep)
    group = tree.plan("one", cpu_count=3, task_count_max=130)
    jail_exec._join(str(group.folder), group.limits)
    assert swept
    assert (group.folder / "cpu.max").read_text() == "300000 100000"
    assert (group.folder / "cgroup.procs").read_text() == str(os.getpid())


def test_there_are_no_groups_without_controllers(tmp_path: Path) -> None:
    assert CgroupTree.open(hierarchy(tmp_path, "")) is None
    assert not (tmp_path / "ramet").exists()
