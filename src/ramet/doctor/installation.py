"""What is installed of ramet itself: its programs, a kernel for guests, a data folder, a daemon."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ramet import __version__
from ramet.boot.locate import (
    GUEST_PROGRAM,
    PAGER_PROGRAM,
    WRITEWATCH_LIBRARY,
    KernelNotFound,
    ProgramNotBuilt,
    find_installed_kernel,
    native_program,
)
from ramet.doctor.findings import Finding, fail, info, ok, warn
from ramet.doctor.host import HostView
from ramet.doctor.subject import Subject

ANSWER_TIMEOUT_S: Final = 1.0
ANSWER_BYTES_MAX: Final = 1 << 16
_JOURNAL: Final = "journalctl -u ramet -n 50"
UNIT_PATH: Final = "/etc/systemd/system/ramet.service"


def check_native_programs(_: Subject, __: HostView) -> Iterator[Finding]:
    """Look for our own programs in the package."""
    try:
        parts = (GUEST_PROGRAM, PAGER_PROGRAM, WRITEWATCH_LIBRARY)
        names = [native_program(name).name for name in parts]
    except ProgramNotBuilt as error:
        yield fail("programs_own", error.code, error.message, error.remedy)
    else:
        yield ok("programs_own", "programs_own", f"{', '.join(names)} are part of this installation")


def check_guest_kernel(subject: Subject, host: HostView) -> Iterator[Finding]:
    """Look for the kernel guests will boot."""
    package = subject.kernel_package
    if package is not None:
        if host.path(package).is_file():
            yield ok("guest_kernel", "guest_kernel_package", f"guests boot the kernel of {package.name}")
        else:
            yield fail(
                "guest_kernel",
                "kernel_package_missing",
                f"the setting kernel_package names {package}, which is not there",
                "apt-get install linux-image-cloud-amd64 and drop the setting, or name a file that is there",
            )
        return
    try:
        found = find_installed_kernel(host.root)
    except KernelNotFound as error:
        yield fail("guest_kernel", error.code, error.message, error.remedy)
    else:
        yield ok("guest_kernel", "guest_kernel", f"guests boot the installed kernel {found.release}")


def check_data_folder(subject: Subject, host: HostView) -> Iterator[Finding]:
    """Look at the data folder's owner and mode; that it is missing is no trouble, the daemon makes it."""
    folder = host.path(subject.data_dir)
    if not folder.exists():
        yield info(
            "data_folder", "data_folder_new", f"{subject.data_dir} is not there yet; the daemon makes it"
        )
        return
    facts = folder.stat()
    if not folder.is_dir():
        yield fail(
            "data_folder",
            "data_folder_no_folder",
            f"{subject.data_dir} is no folder",
            "choose another data_dir",
        )
    elif facts.st_mode & 0o077:
        yield warn(
            "data_folder",
            "data_folder_open",
            f"{subject.data_dir} can be read by others than its owner",
            f"chmod 700 {subject.data_dir}",
        )
    else:
        yield ok("data_folder", "data_folder", f"{subject.data_dir} is there, for its owner alone")


def check_daemon(subject: Subject, host: HostView) -> Iterator[Finding]:
    """Tell whether a daemon runs, on this data folder and at this socket."""
    path = host.path(subject.socket)
    is_held = _is_held(host, subject)
    if not host.exists(subject.socket):
        if is_held:
            yield info(
                "daemon", "daemon_elsewhere", f"a daemon has {subject.data_dir}, but not {subject.socket}"
            )
        else:
            yield info(
                "daemon", "daemon_not_running", "no daemon runs", "systemctl start ramet, or ramet serve"
            )
        return
    try:
        version = _ask_version(str(path))
    except PermissionError:
        yield info(
            "daemon", "daemon_not_seen", f"only root may talk to {subject.socket}", "sudo ramet doctor"
        )
    except TimeoutError:
        yield warn("daemon", "daemon_silent", "the daemon does not answer", _JOURNAL)
    except ConnectionRefusedError:
        yield info(
            "daemon",
            "daemon_not_running",
            "no daemon runs; its socket is left over",
            "systemctl start ramet, or ramet serve",
        )
    except OSError as error:
        yield warn("daemon", "daemon_unclear", f"{subject.socket}: {error}", _JOURNAL)
    else:
        yield from judge_version(subject.socket, version, __version__)


def judge_version(socket_path: Path, version: str | None, own_version: str) -> Iterator[Finding]:
    """Compare the version of the daemon that answered with ours; None is an answer that is none."""
    if version is None:
        yield warn(
            "daemon", "daemon_unclear", f"what answers at {socket_path} is no daemon of ours", _JOURNAL
        )
    elif version != own_version:
        yield warn(
            "daemon",
            "daemon_version",
            f"the daemon is version {version}, this program {own_version}",
            "systemctl restart ramet; guests go on",
        )
    else:
        yield ok("daemon", "daemon", f"a daemon, version {version}, answers at {socket_path}")


def check_service(_: Subject, host: HostView) -> Iterator[Finding]:
    """Tell whether systemd runs here and has our unit."""
    if not host.exists("/run/systemd/system"):
        yield info("service", "no_systemd", "systemd does not run here; start `ramet serve` some other way")
    elif not host.exists(UNIT_PATH) and not host.exists("/lib/systemd/system/ramet.service"):
        yield info("service", "no_unit", "there is no unit ramet.service", "ramet setup")
    else:
        yield ok("service", "service", "the unit ramet.service is installed")


def _is_held(host: HostView, subject: Subject) -> bool:
    """Tell whether a daemon holds the lock of the data folder.

    The kernel's list is read; to try the lock, even shared, could refuse a daemon that starts just now.
    """
    try:
        facts = host.path(subject.data_dir / "lock").stat()
    except OSError:
        return False
    held = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    lines = (host.read("/proc/locks") or "").splitlines()
    return any("FLOCK" in line and held in line.split() for line in lines)


def _ask_version(path: str) -> str | None:
    """Return the version of the daemon at the socket `path`, None if its answer is none of ours."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(path)
        connection.sendall(b"GET /capabilities HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b""
        while len(answer) < ANSWER_BYTES_MAX and (data := connection.recv(4096)):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        return None
    try:
        version = json.loads(body)["server"]["version"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(version)
