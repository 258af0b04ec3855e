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

from ramet.vmm.fake.guest import GuestEnded, HungUp
from ramet.wire.vsock import AGENT_PORT
from tests.vmm.fake_firecracker import faults
from tests.vmm.fake_firecracker.api import Refused, parse
from tests.vmm.fake_firecracker.machine import Machine
from tests.vmm.fake_firecracker.wire import HttpConnection, Request, answer

VERSION_VARIABLE: Final = "RAMET_FAKE_FIRECRACKER_VERSION"
NEWEST: Final = "1.16.1"
_READ_BYTES: Final = 65_536
_GREETING_BYTES_MAX: Final = 32


class Program:
    """Firecracker, seen from outside."""

    def __init__(self, options: argparse.Namespace, version: str) -> None:
        self._options, self._version = options, version
        self._selector = selectors.DefaultSelector()
        self._log = open(options.log_path, "a", buffering=1) if options.log_path else sys.stdout  # noqa: SIM115
        # Not for appending, as Firecracker opens it.
        self._metrics = open(options.metrics_path, "r+") if options.metrics_path else None  # noqa: SIM115
        self._machine = Machine(version, options.id, self._print)
        self._vsock: socket.socket | None = None
        self._agent: socket.socket | None = None
        self._greeting = b""

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
        self._bind_vsock()
        if body.get("action_type") == "FlushMetrics" and self._metrics is not None:
            self._metrics.write('{"utc_timestamp_ms": 1}\n')
            self._metrics.flush()
        if key == ("PUT", "/snapshot/create"):
            self._reset_vsock()
        if was_paused != (machine.state != "Running"):
            self._set_open(machine.state == "Running")
        faults.strike(call, self._options.id, late=True)
        return result

    # The vsock: while the guest stands still nothing is taken from it.

    def _bind_vsock(self) -> None:
        """Bind the guest's socket as soon as there is a vsock, when it is configured or loaded."""
        path = self._machine.vsock_path
        if self._vsock is None and path is not None:
            self._vsock = socket.socket(socket.AF_UNIX)
            self._vsock.bind(path)
            self._vsock.listen(128)

    def _set_open(self, is_running: bool) -> None:
        if self._vsock is None:
            return
        waited_for = self._agent or self._vsock
        if is_running:
            serve = self._serve_agent if self._agent else self._accept_agent
            self._selector.register(waited_for, selectors.EVENT_READ, serve)
        else:
            self._selector.unregister(waited_for)

    def _reset_vsock(self) -> None:
        """End the guest's connections, as a snapshot does: the guest is told that its host has changed."""
        if self._agent is not None:
            self._machine.guest.hang_up()
            self._agent.close()
            self._agent = None

    def _accept_agent(self) -> None:
        assert self._vsock is not None
        self._agent, _ = self._vsock.accept()
        self._greeting = b""
        self._selector.unregister(self._vsock)
        self._selector.register(self._agent, selectors.EVENT_READ, self._serve_agent)

    def _serve_agent(self) -> None:
        peer = self._agent
        assert peer is not None
        try:
            data = peer.recv(_READ_BYTES)
            if data and self._take(peer, data):
                return
        except (ConnectionError, HungUp):
            pass  # As good as an end: dropped below.
        self._drop_agent(peer)

    def _take(self, peer: socket.socket, data: bytes) -> bool:
        """Take what the host sent; false ends the connection."""
        if not self._greeting.endswith(b"\n"):
            line, newline, data = (self._greeting + data).partition(b"\n")
            self._greeting = line + newline
            if not newline:
                return len(line) <= _GREETING_BYTES_MAX
            if line != b"CONNECT %d" % AGENT_PORT:
                return False  # The guest listens at no other port.
            peer.sendall(b"OK 1073741824\n")
            self._machine.guest.connect(lambda answer: self._send(peer, answer))
        if data:
            self._machine.guest.receive(data)
        return True

    def _send(self, peer: socket.socket, data: bytes) -> None:
        try:
            peer.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # The next read tells that it is gone.

    def _drop_agent(self, peer: socket.socket) -> None:
        if self._greeting.endswith(b"\n"):
            self._machine.guest.hang_up()
        self._selector.unregister(peer)
        peer.close()
        self._agent = None
        assert self._vsock is not None
        self._selector.register(self._vsock, selectors.EVENT_READ, self._accept_agent)


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
