"""What of ramet is there, and whether a daemon runs."""

import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet import __version__
from ramet.doctor.findings import Finding, Level
from ramet.doctor.host import HostView
from ramet.doctor.installation import check_daemon, check_data_folder, check_guest_kernel, check_service
from ramet.doctor.subject import Subject
from tests.doctor.made_host import MadeHost


def codes(findings: Iterable[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def test_a_guest_kernel_needs_its_modules(host: MadeHost) -> None:
    host.file("/boot/vmlinuz-6.1.0-9-cloud-amd64")
    assert codes(check_guest_kernel(Subject(), host.view())) == ["kernel_not_found"]
    host.file("/lib/modules/6.1.0-9-cloud-amd64/modules.dep")
    assert codes(check_guest_kernel(Subject(), host.view())) == ["guest_kernel"]


def test_a_kernel_package_that_is_named_must_be_there(host: MadeHost) -> None:
    subject = Subject(kernel_package=Path("/srv/kernel.deb"))
    assert codes(check_guest_kernel(subject, host.view())) == ["kernel_package_missing"]
    host.file("/srv/kernel.deb")
    assert codes(check_guest_kernel(subject, host.view())) == ["guest_kernel_package"]


def test_the_data_folder_is_for_its_owner_alone(host: MadeHost) -> None:
    subject = Subject(data_dir=Path("/data"))
    assert codes(check_data_folder(subject, host.view())) == ["data_folder_new"]
    host.folder("/data", 0o755)
    assert codes(check_data_folder(subject, host.view())) == ["data_folder_open"]
    host.folder("/data", 0o700)
    assert codes(check_data_folder(subject, host.view())) == ["data_folder"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), "no_systemd"),
        (("/run/systemd/system/x",), "no_unit"),
        (("/run/systemd/system/x", "/etc/systemd/system/ramet.service"), "service"),
    ],
)
def test_the_unit_is_looked_for_where_systemd_runs(
    host: MadeHost, files: tuple[str, ...], expected: str
) -> None:
    for file in files:
        host.file(file)
    assert codes(check_service(Subject(), host.view())) == [expected]


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Answer one connection to the unix socket `path`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def capabilities(version: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps({"server": {"version": version}}).encode()


@pytest.mark.parametrize(
    ("answer", "code", "level"),
    [
        (capabilities(__version__), "daemon", Level.OK),
        (capabilities("0.0.1"), "daemon_version", Level.WARN),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "daemon_unclear", Level.WARN),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "daemon_unclear", Level.WARN),
        (b"220 mail ready\r\n", "daemon_unclear", Level.WARN),
        (b"", "daemon_unclear", Level.WARN),
    ],
)
def test_a_daemon_is_known_by_its_answer(tmp_path: Path, answer: bytes, code: str, level: Level) -> None:
    subject = Subject(data_dir=tmp_path, socket=tmp_path / "s")
    with answering(subject.socket, answer):
        [finding] = check_daemon(subject, HostView())
    assert (finding.code, finding.level) == (code, level)


def test_a_socket_that_was_left_over_is_no_daemon(tmp_path: Path) -> None:
    subject = Subject(data_dir=tmp_path, socket=tmp_path / "s")
    assert codes(check_daemon(subject, HostView())) == ["daemon_not_running"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(subject.socket))
    assert codes(check_daemon(subject, HostView())) == ["daemon_not_running"]


def test_a_daemon_that_is_silent_is_told(tmp_path: Path) -> None:
    subject = Subject(data_dir=tmp_path, socket=tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(subject.socket))
        listener.listen(1)
        assert codes(check_daemon(subject, HostView())) == ["daemon_silent"]


def test_a_daemon_with_another_socket_is_known_by_its_lock(tmp_path: Path) -> None:
    subject = Subject(data_dir=tmp_path, socket=tmp_path / "s")
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    try:
        assert codes(check_daemon(subject, HostView())) == ["daemon_not_running"]
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert codes(check_daemon(subject, HostView())) == ["daemon_elsewhere"]
    finally:
        os.close(fd)
