"""Frames of the guest protocol: bytes in, frames out, and no I/O (docs/guest-protocol.md, Frames).

A stream may begin, or break off and begin again, anywhere: a forked child inherits half of its
parent's conversation. So the parser looks for `MAGIC` in the raw bytes before it believes any length,
and a hello is recognised inside a half-finished frame. What follows: no payload may contain `MAGIC`,
and `encode` is the only way bytes get onto the wire.
"""

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

MAGIC: Final = bytes.fromhex("f59dc2e8b1fa8fd6a4ff93cbe0bdf187")
HEADER_BYTES: Final = 8
PAYLOAD_BYTES_MAX: Final = 65_536
STREAM_MAX: Final = 0xFFFF
CREDIT_BYTES: Final = 262_144
"""What each exec may send in either direction before the first CREDIT."""

_CREDIT: Final = struct.Struct(">I")


class ProtocolError(Exception):
    """The other side broke the protocol, or was asked for something the protocol cannot say."""


class FrameType(IntEnum):
    """The second byte of a frame."""

    HELLO = 1
    HELLO_ACK = 2
    REQUEST = 3
    RESPONSE = 4
    STDIN = 5
    STDIN_EOF = 6
    STDOUT = 7
    STDERR = 8
    CREDIT = 9
    EXIT = 10
    EVENT = 11
    SIGNAL = 12


class Direction(Enum):
    """Who speaks: decides which types are known to the receiver, and which hello."""

    HOST_TO_GUEST = "host_to_guest"
    GUEST_TO_HOST = "guest_to_host"


_HELLO: Final = {Direction.HOST_TO_GUEST: FrameType.HELLO, Direction.GUEST_TO_HOST: FrameType.HELLO_ACK}
_TYPES: Final = {
    Direction.HOST_TO_GUEST: {
        int(kind): kind
        for kind in (
            FrameType.HELLO,
            FrameType.REQUEST,
            FrameType.STDIN,
            FrameType.STDIN_EOF,
            FrameType.CREDIT,
            FrameType.SIGNAL,
        )
    },
    Direction.GUEST_TO_HOST: {
        int(kind): kind
        for kind in (
            FrameType.HELLO_ACK,
            FrameType.RESPONSE,
            FrameType.STDOUT,
            FrameType.STDERR,
            FrameType.CREDIT,
            FrameType.EXIT,
            FrameType.EVENT,
        )
    },
}
_RAW: Final = frozenset({FrameType.STDIN, FrameType.STDOUT, FrameType.STDERR})


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, as sent or received. Its payload is the session's affair."""

    type: FrameType
    stream: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Reset:
    """A `MAGIC` was found: whatever came before belongs to another conversation."""


@dataclass(frozen=True, slots=True)
class Violation:
    """The stream cannot be believed from here to the next hello."""

    reason: str


Event = Frame | Reset | Violation


def encode(frame: Frame) -> bytes:
    """Return the bytes of `frame`: several frames if it is raw data that must be split.

    A hello gets its `MAGIC` in front. Raw data is cut at PAYLOAD_BYTES_MAX and inside each `MAGIC`.

    Raises:
        ProtocolError: a payload that may not be split is too long or contains `MAGIC`.
    """
    kind, stream, payload = frame.type, frame.stream, frame.payload
    assert 0 <= stream <= STREAM_MAX, stream
    if len(payload) <= PAYLOAD_BYTES_MAX and MAGIC not in payload:
        head = MAGIC if kind is FrameType.HELLO or kind is FrameType.HELLO_ACK else b""
        return head + _header(kind, stream, len(payload)) + payload
    if kind not in _RAW:
        raise ProtocolError(f"{kind.name}: {len(payload)} bytes do not fit one frame of {PAYLOAD_BYTES_MAX}")
    parts: list[bytes] = []
    start = 0
    while start < len(payload):
        found = payload.find(MAGIC, start)
        piece_end = found + 1 if found >= 0 else len(payload)
        for cut in range(start, piece_end, PAYLOAD_BYTES_MAX):
            end = min(cut + PAYLOAD_BYTES_MAX, piece_end)
            parts += (_header(kind, stream, end - cut), payload[cut:end])
        start = piece_end
    return b"".join(parts)


def credit(stream: int, credit_bytes: int) -> Frame:
    """Return a CREDIT frame that gives `credit_bytes` back."""
    return Frame(FrameType.CREDIT, stream, _CREDIT.pack(credit_bytes))


def decode_credit(payload: bytes) -> int:
    """Return the bytes given back by a CREDIT frame.

    Raises:
        ProtocolError: the payload is not a u32.
    """
    if len(payload) != _CREDIT.size:
        raise ProtocolError(f"CREDIT of {len(payload)} bytes")
    return int(_CREDIT.unpack(payload)[0])


class FrameParser:
    """Turns bytes, however they are cut, into the same events.

    Begins deaf, as it is after a violation: everything up to the next `MAGIC` is dropped unseen. Holds
    at most one unfinished frame.

    Args:
        direction: that of the bytes it will be fed.
    """

    def __init__(self, direction: Direction) -> None:
        self._types = _TYPES[direction]
        self._hello = _HELLO[direction]
        self._partial = bytearray()  # An unfinished frame; empty while deaf.
        self._deaf = True
        self._hello_due = False  # The next frame stands directly behind a MAGIC.
        self._matched = 0  # How many bytes of MAGIC the stream ends with.
        self._suspect: Violation | None = None  # Violation, unless those bytes become a MAGIC.

    @property
    def buffered_bytes(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._partial)

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes of the stream and return what they complete. Never raises."""
        events: list[Event] = []
        stream = MAGIC[: self._matched] + data
        fresh, base = self._matched, 0  # Parsed up to here; no MAGIC begins before there.
        index = stream.find(MAGIC)
        if self._suspect is not None and index != 0:
            if index < 0 and _open_match(stream, 0) == len(stream):
                self._matched = len(stream)
                return events
            events.append(self._suspect)
        self._suspect = None
        while index >= 0:
            fresh_end = index + len(MAGIC)
            self._advance(stream[fresh : fresh_end - 1], index - fresh, events, decided=True)
            self._partial.clear()
            self._deaf, self._hello_due = False, True
            events.append(Reset())
            fresh = base = fresh_end
            index = stream.find(MAGIC, base)
        self._matched = _open_match(stream, base)
        self._advance(stream[fresh:], len(stream) - self._matched - fresh, events, decided=False)
        return events

    def _advance(self, data: bytes, magic_start: int, events: list[Event], *, decided: bool) -> None:
        """Parse `data`, in which a MAGIC begins at `magic_start` (decided) or may begin there (not).

        A header that ends inside a MAGIC is not a bad header.
        """
        if self._deaf or not data:
            return
        partial = self._partial
        held = len(partial)
        partial += data
        start = 0
        while len(partial) - start >= HEADER_BYTES:
            found = self._judge(partial, start)
            if isinstance(found, str):
                self._deaf = True
                header_end = start + HEADER_BYTES - held
                if header_end <= magic_start:
                    events.append(Violation(found))
                elif not decided:
                    self._suspect = Violation(found)
                partial.clear()
                return
            kind, length = found
            end = start + HEADER_BYTES + length
            if len(partial) < end:
                break
            stream = partial[start + 2] << 8 | partial[start + 3]
            events.append(Frame(kind, stream, bytes(partial[start + HEADER_BYTES : end])))
            self._hello_due = False
            start = end
        del partial[:start]

    def _judge(self, data: bytearray, start: int) -> tuple[FrameType, int] | str:
        """Return type and payload length of the header at `start`, or what is wrong with it."""
        if data[start] or data[start + 7]:
            return "a header without its zero bytes"
        kind = self._types.get(data[start + 1])
        if kind is None:
            return f"unknown frame type {data[start + 1]}"
        if (kind is self._hello) != self._hello_due:
            return f"{kind.name} {'behind' if self._hello_due else 'without'} a magic"
        length = int.from_bytes(data[start + 4 : start + 7])
        if length > PAYLOAD_BYTES_MAX:
            return f"a frame of {length} bytes"
        return kind, length


def _header(kind: FrameType, stream: int, length: int) -> bytes:
    return b"\0%c%b%b\0" % (kind, stream.to_bytes(2), length.to_bytes(3))


def _open_match(stream: bytes, base: int) -> int:
    """Return how many bytes of MAGIC `stream` ends with, not counting those before `base`.

    The bytes of MAGIC all differ, so its first byte occurs in an open match only at the front.
    """
    tail = stream[max(base, len(stream) - len(MAGIC) + 1) :]
    start = tail.rfind(MAGIC[:1])
    return len(tail) - start if start >= 0 and MAGIC.startswith(tail[start:]) else 0
