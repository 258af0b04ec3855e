"""HTTP/1.1 as this API speaks it, without I/O: one request, one answer, then the connection ends.

`http.client` is right and takes 40 ms to import, a quarter of the time a command may take to start. What
our server sends needs little of it, and a parser without I/O can drive an async client as well.
"""

import re
from collections.abc import Mapping
from typing import Final

HEAD_BYTES_MAX: Final = 64 << 10
LINE_BYTES_MAX: Final = 256  # Of a chunk's size.
LAST_CHUNK: Final = b"0\r\n\r\n"

_STATUS: Final = re.compile(r"[1-5][0-9]{2}")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_CHUNK_BYTES: Final = re.compile(rb"[0-9a-fA-F]{1,15}")


class NotHttp(Exception):
    """The bytes are no HTTP answer, or it ended before its end."""


def request_bytes(
    method: str, target: str, authority: str, headers: Mapping[str, str], body: bytes | None
) -> bytes:
    """Return a whole request. `target` is already quoted.

    Raises:
        ValueError: something in it would break a line.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {authority}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if any(char in line for line in lines for char in "\r\n\0"):
        raise ValueError("a line of the request holds a line break")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunk_bytes(data: bytes) -> bytes:
    """Return one chunk of a body of untold length. `data` must not be empty: that would be its end."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Answer:
    """An answer as it comes in. `status` is 0 until the head is complete; header names are lowercase."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self._buffer = bytearray()
        self._left_bytes: int | None = None  # Of the body or chunk; None until its length is known.
        self._is_chunked = False
        self._until_end = False

    def feed(self, data: bytes) -> bytes:
        """Take what was received, b"" for its end, and return the body bytes it completes.

        Raises:
            NotHttp: it is none, or ends too early.
        """
        if not data and not self.is_complete:
            if not self._until_end:
                raise NotHttp("the answer ended before its end")
            self.is_complete = True
            return b""
        self._buffer += data
        if not self.status and not self._read_head():
            return b""
        body = bytearray()
        while self._step(body):
            pass
        return bytes(body)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        # Without its end in sight: all of it but the last byte of the end may be here.
        if end > HEAD_BYTES_MAX or (end < 0 and len(self._buffer) > HEAD_BYTES_MAX + 3):
            raise NotHttp("the head of the answer is too long")
        if end < 0:
            return False
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not _STATUS.fullmatch(parts[1]):
            raise NotHttp(f"not an HTTP answer: {first[:60]!r}")
        self.status = int(parts[1])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._is_chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        length = self.headers.get("content-length")
        if self.status == 204 or self.status == 304:
            self._left_bytes = 0
        elif length is not None and not self._is_chunked:
            if not _LENGTH.fullmatch(length):
                raise NotHttp("the answer's length is no number")
            self._left_bytes = int(length)
        self._until_end = not self._is_chunked and self._left_bytes is None
        return True

    def _step(self, body: bytearray) -> bool:
        """Do one thing with the buffer; return whether there may be more to do."""
        if self.is_complete:
            return False
        if self._until_end:
            body += self._buffer
            self._buffer.clear()
            return False
        if self._left_bytes is None:
            return self._read_chunk_size()
        taken = self._buffer[: self._left_bytes]
        body += taken
        del self._buffer[: len(taken)]
        self._left_bytes -= len(taken)
        if self._left_bytes:
            return False
        if not self._is_chunked:
            self.is_complete = True
            return False
        if len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise NotHttp("a chunk does not end where it should")
        del self._buffer[:2]
        self._left_bytes = None
        return True

    def _read_chunk_size(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end > LINE_BYTES_MAX or (end < 0 and len(self._buffer) > LINE_BYTES_MAX + 1):
            raise NotHttp("the size of a chunk is too long")
        if end < 0:
            return False
        digits = bytes(self._buffer[:end]).split(b";")[0].strip()
        if not _CHUNK_BYTES.fullmatch(digits):
            raise NotHttp("the size of a chunk is no number")
        size_bytes = int(digits, 16)
        if size_bytes == 0:
            self.is_complete = True  # Trailers, if any, are nothing to us.
            return False
        del self._buffer[: end + 2]
        self._left_bytes = size_bytes
        return True


class EventLines:
    """Server-sent events whose data is one JSON text each, as they come in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """Return the data of the events that `data` completes, still as JSON; comments are dropped.

        Raises:
            NotHttp: it is no text.
        """
        self._buffer += data
        *whole, rest = bytes(self._buffer).split(b"\n\n")
        self._buffer[:] = rest
        lines = [line[5:].strip() for event in whole for line in event.split(b"\n") if line[:5] == b"data:"]
        try:
            return [line.decode() for line in lines]
        except UnicodeDecodeError as error:
            raise NotHttp("an event is no text") from error
