"""HTTP/1.1 over a unix socket, as little of it as the API needs."""

import json
import socket
from dataclasses import dataclass
from typing import Any, Final

_READ_BYTES: Final = 65_536
_FDS_MAX: Final = 16
_REASONS: Final = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    500: "Internal Server Error",
}


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    path: str
    body: bytes


class HttpConnection:
    """One client."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer, self._received = peer, b""
        self.fds: list[int] = []
        """Descriptors that came with what was received; whoever takes them clears the list."""

    def receive(self) -> list[Request] | None:
        """Read once and return the requests that are whole; None at the end.

        Raises:
            ConnectionError: it was reset.
            ValueError: that is no HTTP.
        """
        data, fds, _, _ = socket.recv_fds(self._peer, _READ_BYTES, _FDS_MAX)
        self.fds += fds
        if not data:
            return None
        self._received += data
        found: list[Request] = []
        while b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            start, *lines = head.decode().split("\r\n")
            method, path, _ = start.split(" ")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                break
            found.append(Request(method, path, rest[:length]))
            self._received = rest[length:]
        return found

    def send(self, data: bytes) -> None:
        """Send an answer; one that nobody waits for any more is dropped."""
        try:
            self._peer.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return


def answer(code: int, result: Any, server: str = "Firecracker API") -> bytes:
    """Return an answer as bytes."""
    head = f"HTTP/1.1 {code} {_REASONS[code]}\r\nServer: {server}\r\nConnection: keep-alive\r\n"
    if result is None:
        return (head + "\r\n").encode()
    body = json.dumps(result)
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
