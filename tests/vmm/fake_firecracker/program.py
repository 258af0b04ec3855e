"""The process: one thread that serves the API's socket, and the guest's agent behind its vsock.

Its options are Firecracker's. What it claims to be is RAMET_FAKE_FIRECRACKER_VERSION (1.16.1 without): what
that version does not know it refuses.
"""

import argparse
import os
import selectors
import socket
import sys
from pathlib import Path
from typing import Any, Final

from ramet.vmm.fake.guest import GuestEnded
from tests.vmm.fake_firecracker import faults
from tests.vmm.fake_firecracker.api import Refused, parse
from tests.vmm.fake_firecracker.machine import Machine
from tests.vmm.fake_firecracker.vsock import Vsock
from tests.vmm.fake_firecracker.wire import HttpConnection, Request, answer

VERSION_VARIABLE: Final = "RAMET_FAKE_FIRECRACKER_VERSION"
NEWEST: Final = "1.16.1"


class Program:
    """Firecracker, seen from outside."""

    def __init__(self, options: argparse.Namespace, version: str) -> None:
        self._options, self._version = options, version
        self._selector = selectors.DefaultSelector()
        self._log = open(options.log_path, "a", buffering=1) if options.log_path else sys.stdout  # noqa: SIM115
        # Not for appending, as Firecracker opens it.
        self._metrics = open(options.metrics_path, "r+") if options.metrics_path else None  # noqa: SIM115
        self._machine = Machine(version, options.id, self._print)
        self._vsock = Vsock(self._selector, lambda: self._machine.guest)

    def run(self) -> int:
        """Serve until the guest ends; returns the exit code."""
        if os.path.exists(self._options.api_sock):
            self.log(
                f"Failed to open the API socket at: {self._options.api_sock}. Check that it is not used."
            )
            return 1
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._options.api_sock)
        listener.listen(128)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept_api(listener))
        try:
            while True:
                for key, _ in self._selector.select():
                    # What was served before it in this round may have closed it.
                    if self._selector.get_map().get(key.fileobj) == key:
                        key.data()
        except GuestEnded as end:
            if end.reason is None:
                os.abort()
            self.log("Vmm is stopping.")
        except Refused as fatal:
            self.log(f"{fatal}")
            return 1
        return 0

    def log(self, line: str) -> None:
        """Write a line to the log."""
        self._log.write(f"2026-01-01T00:00:00.000000000 [{self._options.id}:main] {line}\n")
        self._log.flush()

    def _print(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    # The API

    def _accept_api(self, listener: socket.socket) -> None:
        peer, _ = listener.accept()
        connection = HttpConnection(peer)

        def serve() -> None:
            try:
                requests = connection.receive()
            except (ConnectionError, ValueError):
                requests = None
            if requests is None:
                self._selector.unregister(peer)
                peer.close()
                return
            for request in requests:
                self._serve(connection, request)

        self._selector.register(peer, selectors.EVENT_READ, serve)

    def _serve(self, connection: HttpConnection, request: Request) -> None:
        self.log(f'The API server received a {request.method} request on "{request.path}".')
        fatal: Refused | None = None
        try:
            result = self._execute(request)
            code: int = 200 if result is not None else 204
        except Refused as refused:
            code, result = 400, {"fault_message": str(refused)}
            self.log(f"Received Error. Status code: 400 Bad Request. Message: {refused}")
            fatal = refused if refused.is_fatal else None
        connection.send(answer(code, result))
        if fatal is not None:
            raise fatal

    def _execute(self, request: Request) -> Any:
        machine = self._machine
        key, body = parse(machine.version, machine.state, request.method, request.path, request.body)
        call = f"{request.method} {request.path}"
        faults.strike(call, self._options.id, late=False)
        was_paused = machine.state != "Running"
        result = machine.execute(key, body)
        self._vsock.bind(machine.vsock_path)
        if body.get("action_type") == "FlushMetrics" and self._metrics is not None:
            self._metrics.write('{"utc_timestamp_ms": 1}\n')
            self._metrics.flush()
        if key == ("PUT", "/snapshot/create"):
            self._vsock.reset()
        if key == ("PUT", "/actions") and was_paused:
            self._vsock.output = b"the workload has begun\n"
        if was_paused != (machine.state != "Running"):
            self._vsock.set_running(machine.state == "Running")
        faults.strike(call, self._options.id, late=True)
        return result


def main() -> None:
    """Run with the options of the command line; does not return."""
    version = os.environ.get(VERSION_VARIABLE, NEWEST)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--snapshot-version", action="store_true")
    parser.add_argument("--api-sock", default="/run/firecracker.socket")
    parser.add_argument("--id", default="anonymous-instance")
    parser.add_argument("--no-seccomp", action="store_true")
    parser.add_argument("--seccomp-filter")
    parser.add_argument("--log-path")
    parser.add_argument("--level", choices=("Error", "Warning", "Info", "Debug", "Trace", "Off"))
    parser.add_argument("--metrics-path")
    options = parser.parse_args()
    if options.version:
        print(f"Firecracker v{version}\n")
        sys.exit(0)
    if options.snapshot_version:
        print("v5.0.0")
        sys.exit(0)
    if not options.id.replace("-", "").isalnum() or len(options.id) > 64:
        sys.exit("Invalid instance ID")
    for path in filter(None, (options.log_path, options.metrics_path)):
        if not Path(path).exists() and version < "1.14":
            sys.exit("Could not initialize logger or metrics: no such file")
    program = Program(options, version)
    code = program.run()
    program.log(f"Firecracker exiting {'successfully' if code == 0 else 'with error'}. exit_code={code}")
    os._exit(code)
