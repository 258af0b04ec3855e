"""The process: one thread that serves the API's socket, and the guest's agent behind its vsock.

Its options are Cloud Hypervisor's. What it claims to be is RAMET_FAKE_CLOUD_HYPERVISOR_VERSION (53.0
without): what that version does not know it refuses.
"""

import argparse
import fcntl
import json
import os
import selectors
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ramet.vmm.fake.guest import GuestEnded
from tests.vmm.fake_cloud_hypervisor.api import Refused, parse
from tests.vmm.fake_cloud_hypervisor.machine import Machine, lock_file
from tests.vmm.fake_firecracker import api as shared
from tests.vmm.fake_firecracker import faults
from tests.vmm.fake_firecracker.vsock import Vsock
from tests.vmm.fake_firecracker.wire import HttpConnection, Request, answer

VERSION_VARIABLE: Final = "RAMET_FAKE_CLOUD_HYPERVISOR_VERSION"
FAULTS_VARIABLE: Final = "RAMET_FAKE_CLOUD_HYPERVISOR_FAULTS"
NEWEST: Final = "53.0"
LOCKS_SINCE: Final = (53, 0)


class Program:
    """Cloud Hypervisor, seen from outside."""

    def __init__(self, api_socket: str, events: str | None, version: str, *, is_verbose: bool) -> None:
        self._api_socket, self._is_verbose = api_socket, is_verbose
        self._selector = selectors.DefaultSelector()
        self._events = open(events, "w") if events else None  # noqa: SIM115
        self._machine = Machine(version, self._tell)
        self._vsock = Vsock(self._selector, lambda: self._machine.guest)
        self._is_open = False  # Whether the guest's vsock is served.

    def run(self) -> int:
        """Serve until the guest ends; returns the exit code."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            if self._machine.version >= LOCKS_SINCE:
                self._lock()
            listener.bind(self._api_socket)
        except OSError as error:
            print(f"Error creating the API server's socket: {error}", file=sys.stderr)
            return 1
        listener.listen(128)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept_api(listener))
        try:
            while True:
                self._serve_until_reset()
                self._machine.reboot()
                self._open_vsock()
        except GuestEnded as end:
            if end.reason is None:
                os.abort()
        except Refused as fatal:
            print(f"{fatal}", file=sys.stderr)
            return 1
        self._tell("vmm", "shutdown")
        with suppress(OSError):  # In a jail it may not.
            os.unlink(self._api_socket)
        self.log("Cloud Hypervisor exited successfully")
        return 0

    def _lock(self) -> None:
        """Hold a file beside the socket, which is removed if an ended process has left it.

        Raises:
            OSError: it is another's, who runs or is another user.
        """
        fd = os.open(f"{self._api_socket}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        lock_file(fd, fcntl.F_WRLCK)  # As long as this process lives.
        Path(self._api_socket).unlink(missing_ok=True)

    def log(self, line: str) -> None:
        """Write a line to the log, if anybody wants to know."""
        if self._is_verbose:
            print(f"cloud-hypervisor: 0.000000s: <vmm> INFO:fake -- {line}", file=sys.stderr, flush=True)

    def _tell(self, source: str, event: str) -> None:
        self.log(f"Event: source = {source} event = {event}")
        if self._events is not None:
            told = {
                "timestamp": {"secs": 0, "nanos": 0},
                "source": source,
                "event": event,
                "properties": None,
            }
            self._events.write(json.dumps(told, indent=2) + "\n\n")
            self._events.flush()

    def _serve_until_reset(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    # What was served before it in this round may have closed it.
                    if self._selector.get_map().get(key.fileobj) == key:
                        key.data()
        except GuestEnded as end:
            if end.reason != "guest-reset":
                raise
        self._vsock.set_running(False)
        self._is_open = False
        self._vsock.reset()

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
        fatal: Refused | None = None
        ended: GuestEnded | None = None
        code, result = 204, None
        try:
            result = self._execute(request, connection.fds)
            code = 200 if result is not None else 204
        except Refused as refused:
            code, result = refused.status, ["Error from API", str(refused)]
            self.log(f"HTTP API error response: {refused}")
            fatal = refused if refused.is_fatal else None
        except GuestEnded as end:
            ended = end
        connection.fds.clear()
        connection.send(answer(code, result, "Cloud Hypervisor API"))
        if fatal is not None or ended is not None:
            raise fatal or ended  # type: ignore[misc]  # One of them is there.

    def _execute(self, request: Request, fds: list[int]) -> Any:
        machine = self._machine
        action, body = parse(machine.version, request.method, request.path, request.body)
        self.log(f"API request event: {action}")
        name = Path.cwd().name
        try:
            faults.strike(f"{request.method} {action}", name, late=False, variable=FAULTS_VARIABLE)
            result = machine.execute(action, body, list(fds))
            if action == "vm.boot":
                self._vsock.output = b"the workload has begun\n"
            self._open_vsock()
            faults.strike(f"{request.method} {action}", name, late=True, variable=FAULTS_VARIABLE)
        except shared.Refused as on_demand:
            raise Refused(str(on_demand)) from on_demand
        return result

    def _open_vsock(self) -> None:
        machine = self._machine
        is_running = machine.state == "Running"
        self._vsock.bind(machine.vsock_path if machine.state != "None" else None)
        if is_running != self._is_open:
            self._vsock.set_running(is_running)
            self._is_open = is_running


def main() -> None:
    """Run with the options of the command line; does not return."""
    version = os.environ.get(VERSION_VARIABLE, NEWEST)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-V", "--version", action="store_true")
    parser.add_argument("-v", action="count", default=0)
    parser.add_argument("--api-socket")
    parser.add_argument("--event-monitor")
    parser.add_argument("--log-file")
    parser.add_argument("--seccomp", choices=("true", "false", "log"))
    options = parser.parse_args()
    if options.version:
        print(f"cloud-hypervisor v{version}")
        sys.exit(0)
    if options.api_socket is None:
        sys.exit("the fake needs --api-socket")
    events = options.event_monitor.removeprefix("path=") if options.event_monitor else None
    program = Program(options.api_socket.removeprefix("path="), events, version, is_verbose=options.v > 0)
    os._exit(program.run())
