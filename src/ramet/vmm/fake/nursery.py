"""A warm process that forks fake VMMs: a millisecond or two each, where a fresh Python costs forty.

For tests that start thousands. What it forks is a process like any other fake VMM's, found by its command
line, held by its pid and killed like one; only its parent is another.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ramet.vmm.fake.process import FakeVmm

COMMAND_BYTES_MAX: Final = 8 << 10
"""Room for the options in the command line of a VMM."""
_MESSAGE_BYTES_MAX: Final = 64 << 10
_FDS_MAX: Final = 8
_ARGUMENTS_START_FIELD: Final = 48  # proc_pid_stat(5), counted from 1.
_SOURCE: Final = Path(__file__).parents[3]
_START: Final = (
    f"import sys; sys.path.insert(0, {str(_SOURCE)!r}); from ramet.vmm.fake.nursery import main; main()"
)


class Nursery:
    """The warm process. It ends with `close`, or with the last who holds it open; VMMs do not."""

    def __init__(self, mark: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # The blank last argument is overwritten in each VMM, by the options as the driver looks for them.
            argv = [sys.executable, "-I", "-S", "-c", _START, mark, '{"folder": ""}'.ljust(COMMAND_BYTES_MAX)]
            self._process = subprocess.Popen(argv, stdin=theirs.fileno(), start_new_session=True)
        self._count = 0

    def start(self, options: Mapping[str, Any], *, output: Path, fds: Sequence[int]) -> int:
        """Fork a VMM and return its pid. `options` name descriptors as ours, all of them among `fds`.

        Raises:
            OSError: the nursery is gone.
        """
        self._count += 1
        key = f"{os.getpid()}.{self._count}"
        return self._ask({"key": key, "options": options, "output": str(output), "fds": list(fds)}, fds)

    def settle(self) -> None:
        """Return when all that was asked for, by whomever, has been done."""
        self._count += 1
        self._ask({"key": f"{os.getpid()}.{self._count}"}, ())

    def close(self) -> None:
        """End the warm process."""
        self._socket.close()
        self._process.wait()

    def _ask(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        socket.send_fds(self._socket, [json.dumps(request).encode()], list(fds))
        while True:
            raw = self._socket.recv(_MESSAGE_BYTES_MAX)
            if not raw:
                raise OSError("the nursery is gone")
            answer = json.loads(raw)
            if answer["key"] == request["key"]:  # Else that of one who did not live to read it.
                return int(answer["pid"])


def main() -> None:
    """Fork a VMM for each request on stdin, until nobody can make any."""
    requests = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for them here.
    while True:
        raw, fds, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES_MAX, _FDS_MAX)
        if not raw:
            return
        request = json.loads(raw)
        pid = _fork(request, fds, requests) if "options" in request else 0
        for fd in fds:
            os.close(fd)
        try:
            requests.send(json.dumps({"key": request["key"], "pid": pid}).encode())
        except (BrokenPipeError, ConnectionResetError):
            return


def _fork(request: dict[str, Any], fds: list[int], requests: socket.socket) -> int:
    """Fork a VMM and return its pid once it can be found by its command line."""
    named, is_named = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(named)
        _become(request, fds, requests, is_named)
    os.close(is_named)
    os.read(named, 1)  # Nothing comes: its end is closed.
    os.close(named)
    return pid


def _become(request: dict[str, Any], fds: list[int], requests: socket.socket, is_named: int) -> None:
    """Be a VMM and end as one; `is_named` is closed when the command line says so."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        requests.close()
        ours = dict(zip(request["fds"], fds, strict=True))
        sink = os.open(request["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for source, target in ((null, 0), (sink, 1), (sink, 2)):
            os.dup2(source, target)
        os.close(sink)
        os.close(null)
        options = request["options"]
        _write_command_line(json.dumps(options).encode())
        os.close(is_named)
        options = {
            name: ours[value] if name.endswith("_fd") and value is not None else value
            for name, value in options.items()
        }
        FakeVmm(options).run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def _write_command_line(last: bytes) -> None:
    """Overwrite the last argument of this process, in the memory from which the kernel reads it."""
    raw = Path("/proc/self/cmdline").read_bytes()
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_ARGUMENTS_START_FIELD - 3])
    offset = len(raw) - 1 - COMMAND_BYTES_MAX
    assert len(last) <= COMMAND_BYTES_MAX, "more room is needed"
    ctypes.memmove(start + offset, last.ljust(COMMAND_BYTES_MAX), COMMAND_BYTES_MAX)
