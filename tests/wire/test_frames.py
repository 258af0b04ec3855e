"""The parser believes what a sender meant, however its bytes are cut, and nothing else."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    credit,
    decode_credit,
    encode,
)

HELLO_ACK = Frame(FrameType.HELLO_ACK, 0, b'{"nonce":"it is me"}')
HELLO = encode(HELLO_ACK)
RAW = (FrameType.STDOUT, FrameType.STDERR)

streams = st.integers(0, 0xFFFF)
json_frames = st.builds(
    Frame,
    st.sampled_from([FrameType.RESPONSE, FrameType.EXIT, FrameType.EVENT]),
    streams,
    st.text(st.characters(max_codepoint=127), max_size=40).map(str.encode),
)
magical = st.lists(
    st.one_of(st.just(MAGIC), st.integers(1, 15).map(lambda n: MAGIC[:n]), st.binary(max_size=20)), max_size=5
).map(b"".join)
raw_frames = st.builds(Frame, st.sampled_from(RAW), streams, magical)
frames = st.one_of(json_frames, raw_frames, st.just(HELLO_ACK))
conversations = st.lists(frames, max_size=6).map(lambda said: [HELLO_ACK, *said])
# Bytes in which every corner is likely: pieces of headers, of magic, of whole frames.
corners = st.lists(
    st.one_of(
        st.just(HELLO),
        st.just(MAGIC),
        st.tuples(st.integers(0, 15), st.integers(1, 16)).map(lambda cut: MAGIC[cut[0] : cut[1]]),
        st.tuples(st.integers(0, 12), st.integers(0, 20)).map(
            lambda h: bytes((0, h[0], 0, 1, 0, 0, h[1], 0))
        ),
        frames.map(encode),
        st.binary(max_size=12),
    ),
    max_size=8,
).map(b"".join)


def parser() -> FrameParser:
    return FrameParser(Direction.GUEST_TO_HOST)


def feed(data: bytes, cuts: list[int]) -> list[Event]:
    receiver = parser()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[start:end] for start, end in pairwise(edges)]
    return [event for chunk in chunks for event in receiver.feed(chunk)]


def joined(events: list[Event]) -> list[object]:
    """Frames, with what `encode` has split put together again."""
    whole: list[object] = []
    for event in events:
        last = whole[-1] if whole else None
        if (
            isinstance(event, Frame)
            and isinstance(last, Frame)
            and event.type in RAW
            and (last.type, last.stream) == (event.type, event.stream)
        ):
            whole[-1] = Frame(event.type, event.stream, last.payload + event.payload)
        elif event != Reset():
            whole.append(event)
    return whole


@given(corners, st.lists(st.integers(0, 300), max_size=20))
@settings(max_examples=500)
def test_events_do_not_depend_on_how_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    whole = feed(data, [])
    assert feed(data, cuts) == whole
    assert feed(data, list(range(len(data)))) == whole


@given(conversations)
def test_what_is_encoded_is_what_arrives(said: list[Frame]) -> None:
    got = parser().feed(b"".join(map(encode, said)))
    assert joined(got) == joined(list(said))


@given(conversations, st.data())
def test_a_hello_is_heard_behind_any_part_of_a_conversation(said: list[Frame], data: st.DataObject) -> None:
    before = b"".join(map(encode, said))
    before = before[: data.draw(st.integers(0, len(before)))]
    asked = Frame(FrameType.HELLO_ACK, 0, b'{"nonce":"new"}')
    answer = Frame(FrameType.RESPONSE, 7, b'{"ok":{}}')
    got = parser().feed(before + encode(asked) + encode(answer))
    assert got[-3:] == [Reset(), asked, answer]
    if HELLO_ACK not in said[1:]:  # Half a magic, without the rest of it, is a violation.
        assert not [event for event in got if isinstance(event, Violation)]


@given(st.binary(max_size=600), st.binary(max_size=600))
def test_a_hello_is_heard_behind_any_garbage(garbage: bytes, more: bytes) -> None:
    got = parser().feed(HELLO + garbage + more + HELLO)
    assert got[-2:] == [Reset(), HELLO_ACK]


@given(corners)
def test_only_a_hello_puts_magic_on_the_wire(data: bytes) -> None:
    for kind in (*RAW, FrameType.STDIN):
        assert MAGIC not in encode(Frame(kind, 0xF59D, data))
    assert encode(HELLO_ACK).count(MAGIC) == 1


def test_magic_across_the_longest_frames_stays_hidden() -> None:
    for offset in range(PAYLOAD_BYTES_MAX - 17, PAYLOAD_BYTES_MAX + 2):
        data = bytes(offset) + MAGIC * 2 + bytes(PAYLOAD_BYTES_MAX)
        wire = encode(Frame(FrameType.STDOUT, 1, data))
        assert MAGIC not in wire
        got = parser().feed(HELLO + wire)[2:]
        assert b"".join(event.payload for event in got if isinstance(event, Frame)) == data
        assert all(isinstance(event, Frame) and len(event.payload) <= PAYLOAD_BYTES_MAX for event in got)


@pytest.mark.parametrize("payload", [bytes(PAYLOAD_BYTES_MAX + 1), b"{" + MAGIC])
def test_json_that_does_not_fit_a_frame_is_not_sent(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        encode(Frame(FrameType.REQUEST, 1, payload))


@given(st.lists(st.one_of(st.binary(max_size=2000), corners), max_size=20))
def test_garbage_is_survived_in_bounded_memory(chunks: list[bytes]) -> None:
    receiver = parser()
    for chunk in chunks:
        receiver.feed(chunk)
        assert receiver.buffered_bytes <= HEADER_BYTES + PAYLOAD_BYTES_MAX


def test_a_frame_that_never_ends_is_not_held_beyond_its_limit() -> None:
    receiver = parser()
    receiver.feed(HELLO + bytes((0, FrameType.STDOUT, 0, 1, 1, 0, 0, 0)))
    frames_seen = 0
    for _ in range(100):
        frames_seen += len(receiver.feed(b"\x01" * 5000))
        assert receiver.buffered_bytes <= HEADER_BYTES + PAYLOAD_BYTES_MAX
    assert frames_seen == 2  # The frame, and then the violation behind it.


def test_a_violation_is_told_once_and_deafens_to_the_next_hello() -> None:
    receiver = parser()
    answer = encode(Frame(FrameType.RESPONSE, 7, b"{}"))
    got = receiver.feed(HELLO + b"\xff" * 64 + answer + answer)
    assert [type(event) for event in got] == [Reset, Frame, Violation]
    assert receiver.feed(HELLO + answer)[-1] == Frame(FrameType.RESPONSE, 7, b"{}")


def test_credit_is_four_bytes() -> None:
    assert decode_credit(credit(3, 262_144).payload) == 262_144
    with pytest.raises(ProtocolError):
        decode_credit(b"\0\0\1")
