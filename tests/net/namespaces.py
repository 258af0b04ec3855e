"""Network namespaces for tests.

A namespace belongs to a thread. The test's thread moves into a new one before its event loop begins, so
worker threads and child processes, made later, are in it too. A socket stays in the namespace it was made in.
"""

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = ctypes.c_ulong(1 << 14 | 1 << 18)
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """A network namespace, held by a descriptor and gone with it."""

    def __init__(self) -> None:
        failure: list[OSError] = []

        def make() -> None:
            try:
                _checked(_libc.unshare(CLONE_NEWNET))
                self.fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                failure.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread in the namespace inside."""
        before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_libc.setns(self.fd, CLONE_NEWNET))
            yield
        finally:
            _checked(_libc.setns(before, CLONE_NEWNET))
            os.close(before)

    def ip(self, arguments: str) -> str:
        """Run `ip` with `arguments` in the namespace."""
        with self.entered():
            return run_ip(arguments)

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """Return an IPv4 socket of the namespace."""
        with self.entered():
            return socket.socket(socket.AF_INET, kind)

    @property
    def path(self) -> Path:
        """A path of the namespace, good while this process lives."""
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")

    def close(self) -> None:
        os.close(self.fd)


def run_ip(arguments: str) -> str:
    done = subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)
    return done.stdout


def leave_mounts() -> None:
    """Have this process, and those it starts, see no mount that others make from now on; nor they of its."""
    _checked(_libc.unshare(CLONE_NEWNS))
    _checked(_libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))


@contextmanager
def own_namespace() -> Iterator[None]:
    """Have the calling thread in a new namespace that has loopback only; skip the test if not allowed."""
    try:
        namespace = Namespace()
    except PermissionError:
        pytest.skip("making a network namespace takes CAP_SYS_ADMIN")
    try:
        with namespace.entered():
            run_ip("link set lo up")
            yield
    finally:
        namespace.close()
