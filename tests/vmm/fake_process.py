"""One fake VMM, asked over REST without a driver."""

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ramet.wire.boot_config import BootConfig

OK: Final = 200
NO_CONTENT: Final = 204
BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
SERVER_ERROR: Final = 500
Answer = tuple[int, Any]


class FakeProcess:
    """A process in `folder`, whose API is behind `api.sock` there."""

    def __init__(self, folder: Path, argv: Sequence[str | Path], variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            argv, cwd=folder, stdout=subprocess.PIPE, text=True, env=os.environ | variables
        )

    def ask(self, method: str, path: str, body: object = None, fds: Sequence[int] = ()) -> Answer:
        """Ask for something; `fds` go along with it."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        while True:
            try:
                connection.sock.connect(str(self.folder / "api.sock"))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert self.process.poll() is None
        if fds:
            content = json.dumps(body)
            head = f"{method} {path} HTTP/1.1\r\nContent-Length: {len(content)}\r\n\r\n"
            socket.send_fds(connection.sock, [(head + content).encode()], fds)
            answer = http.client.HTTPResponse(connection.sock, method=method)
            answer.begin()
        else:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
        told = answer.read()
        connection.close()
        return answer.status, json.loads(told) if told else None

    def make_disks(self) -> None:
        """Have a disk to write to, and one that says what the guest is to run."""
        config = BootConfig(
            argv=("sleep",),
            env={},
            cwd="/",
            user="",
            hostname="h",
            machine_id="0" * 32,
            clock_ns=0,
            entropy=bytes(64),
        )
        (self.folder / "config.img").write_bytes(config.to_disk())
        (self.folder / "overlay.raw").write_bytes(bytes(4096))

    def end(self) -> None:
        """End it. Idempotent."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
