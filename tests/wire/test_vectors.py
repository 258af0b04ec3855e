"""The vectors that this side and the guest's program share."""

import json
from pathlib import Path

import pytest

from ramet.wire.frames import (
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
    encode,
)
from ramet.wire.messages import ExecRequest, PathReport, TerminalSize

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())


def unhex(text: str) -> bytes:
    parts = (token.partition("*") for token in text.split())
    return b"".join(bytes.fromhex(digits) * int(times or 1) for digits, _, times in parts)


def plain(event: Event) -> object:
    match event:
        case Reset():
            return "reset"
        case Violation():
            return "error"
        case Frame(kind, stream, payload):
            return (int(kind), stream, payload)


def expected(event: object) -> object:
    if isinstance(event, dict):
        return (event["type"], event["stream"], unhex(event["payload"]))
    return event


def test_the_vectors_are_of_this_protocol() -> None:
    assert unhex(VECTORS["magic"]) == MAGIC
    assert VECTORS["payload_bytes_max"] == PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("cut", ["as written", "whole", "one byte at a time"])
@pytest.mark.parametrize("case", VECTORS["decode"], ids=lambda case: case["name"])
def test_received_bytes_mean_what_the_vectors_say(case: dict[str, object], cut: str) -> None:
    chunks = [unhex(chunk) for chunk in case["chunks"]]  # type: ignore[attr-defined]
    whole = b"".join(chunks)
    if cut == "whole":
        chunks = [whole]
    elif cut == "one byte at a time":
        chunks = [whole[i : i + 1] for i in range(len(whole))]
    parser = FrameParser(Direction(case["direction"]))
    got = [plain(event) for chunk in chunks for event in parser.feed(chunk)]
    assert got == [expected(event) for event in case["events"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", VECTORS["encode"], ids=lambda case: case["name"])
def test_sent_frames_look_as_the_vectors_say(case: dict[str, object]) -> None:
    frames = [
        Frame(FrameType(frame["type"]), frame["stream"], unhex(frame["payload"]))
        for frame in case["frames"]  # type: ignore[attr-defined]
    ]
    assert b"".join(map(encode, frames)) == unhex(str(case["wire"]))


def plain_request(message: dict[str, object]) -> dict[str, object]:
    """Return what this side would say for what it understood."""
    if message["op"] == "resize":
        return {"op": "resize", "exec": message["exec"], **TerminalSize.from_json(message).to_json()}
    return {"op": "exec", **ExecRequest.from_json(message).to_json()}


@pytest.mark.parametrize("case", VECTORS["requests"], ids=lambda case: case["name"])
def test_requests_are_written_as_the_vectors_say(case: dict[str, dict[str, object]]) -> None:
    if case["accepted"]:
        assert plain_request(case["message"]) == case["message"]
    else:
        with pytest.raises(ProtocolError):
            plain_request(case["message"])


@pytest.mark.parametrize("case", VECTORS["path_reports"], ids=lambda case: case["name"])
def test_path_reports_say_what_the_vectors_say(case: dict[str, dict[str, object]]) -> None:
    assert PathReport.from_json(case["report"]).to_json() == case["report"]
