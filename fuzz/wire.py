"""The guest protocol as the host reads it: frames, their JSON, and the config disk."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from ramet.wire.boot_config import BootConfig
from ramet.wire.frames import (
    HEADER_BYTES,
    MAGIC,
    PAYLOAD_BYTES_MAX,
    Direction,
    Event,
    Frame,
    FrameParser,
    FrameType,
    ProtocolError,
    Reset,
    Violation,
    decode_credit,
    encode,
)
from ramet.wire.messages import (
    ExecRequest,
    ExitStatus,
    Health,
    Hello,
    HelloAck,
    Identity,
    IdentityAnswer,
    Network,
    PathReport,
    TerminalSize,
    Workload,
    dump,
    load,
    load_event,
    load_response,
)

_DIRECTIONS: Final = tuple(Direction)


def frames(data: bytes) -> None:
    """However bytes are cut, they mean the same; an honest frame in them encodes to what it was.

    The first byte is the direction, the second how the rest is cut.
    """
    if len(data) < 2:
        return
    direction, seed, stream = _DIRECTIONS[data[0] % 2], data[1], data[2:]
    whole = parse(direction, [stream])
    assert whole == parse(direction, list(cuts(stream, seed))), "cut, the bytes mean something else"
    for event in whole:
        if isinstance(event, Frame):
            assert len(event.payload) <= PAYLOAD_BYTES_MAX, "a frame longer than any may be"
            assert MAGIC not in event.payload, "a payload that holds MAGIC"
            _check_encoding(direction, event)


def parse(direction: Direction, pieces: list[bytes]) -> list[str | Frame]:
    """Return what a fresh parser finds in `pieces`; a violation only as that, its words may differ."""
    parser = FrameParser(direction)
    found: list[str | Frame] = []
    for piece in pieces:
        found += map(_plain, parser.feed(piece))
        assert parser.buffered_bytes < HEADER_BYTES + PAYLOAD_BYTES_MAX, "more than one unfinished frame"
    return found


def cuts(stream: bytes, seed: int) -> Iterator[bytes]:
    """Cut `stream` into pieces of lengths that `seed` decides; 0 is byte by byte."""
    at = 0
    while at < len(stream):
        length = 1 + (seed * (at + 7) >> 2) % (seed + 1)
        yield stream[at : at + length]
        at += length


def _plain(event: Event) -> str | Frame:
    match event:
        case Reset():
            return "reset"
        case Violation():
            return "violation"
        case Frame():
            return event


def _check_encoding(direction: Direction, frame: Frame) -> None:
    hello = FrameType.HELLO if direction is Direction.HOST_TO_GUEST else FrameType.HELLO_ACK
    if frame.type is hello:
        assert parse(direction, [encode(frame)]) == ["reset", frame]
    else:
        assert parse(direction, [encode(Frame(hello, 0)), encode(frame)])[2:] == [frame]


_PARSERS: Final[tuple[Callable[[Mapping[str, Any]], Any], ...]] = (
    Hello.from_json,
    HelloAck.from_json,
    Workload.from_json,
    Network.from_json,
    Identity.from_json,
    IdentityAnswer.from_json,
    Health.from_json,
    ExecRequest.from_json,
    ExitStatus.from_json,
    TerminalSize.from_json,
    PathReport.from_json,
)


def messages(data: bytes) -> None:
    """A payload is a message or a ProtocolError, and a message says again what it said.

    The first byte chooses the kind of message.
    """
    if not data:
        return
    kind, payload = data[0] % (len(_PARSERS) + 3), data[1:]
    message = None
    try:
        if kind == len(_PARSERS):
            load_response(payload)
        elif kind == len(_PARSERS) + 1:
            load_event(payload)
        elif kind == len(_PARSERS) + 2:
            decode_credit(payload)
        else:
            message = _PARSERS[kind](load(payload))
    except ProtocolError:
        return
    if message is not None:  # What we wrote ourselves must not be refused.
        again = _PARSERS[kind](json.loads(dump(message.to_json())))
        assert again == message, f"{message} was written as {again}"


def boot_config(data: bytes) -> None:
    """A disk is a configuration or a ProtocolError, and a configuration fits a disk again."""
    try:
        config = BootConfig.from_disk(data)
    except ProtocolError:
        return
    assert BootConfig.from_disk(config.to_disk()) == config
