"""The parser of answers: whole however they are cut, and never misled."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.client.http1 import HEAD_BYTES_MAX, Answer, EventLines, NotHttp, request_bytes

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nX-A:  b \r\n\r\nbody"


def parse(pieces: list[bytes]) -> tuple[Answer, bytes]:
    answer, body = Answer(), b""
    for piece in pieces:
        if piece and not answer.is_complete:
            body += answer.feed(piece)
    return answer, body


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % len(data) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(bounds)]


@given(places=st.lists(st.integers(0, 1000)))
def test_an_answer_is_whole_however_it_is_cut(places: list[int]) -> None:
    answer, body = parse(cut(CHUNKED, places))
    assert (answer.status, body, answer.is_complete) == (200, b"hello world", True)
    answer, body = parse(cut(SIZED, places))
    assert (answer.status, body, answer.is_complete, answer.headers["x-a"]) == (404, b"body", True, "b")


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    answer = Answer()
    assert answer.feed(b"HTTP/1.1 200 OK\r\n\r\nso far") == b"so far"
    assert not answer.is_complete
    answer.feed(b"")
    assert answer.is_complete


def test_no_content_is_complete_at_once() -> None:
    answer, body = parse([b"HTTP/1.1 204 No Content\r\n\r\n"])
    assert (answer.is_complete, body) == (True, b"")


@pytest.mark.parametrize("end", range(1, len(CHUNKED) - 4))
def test_an_answer_that_ends_too_early_is_an_error(end: int) -> None:
    answer = Answer()
    answer.feed(CHUNKED[:end])
    with pytest.raises(NotHttp):
        answer.feed(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 300,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;" + b"x" * 300 + b"\r\n",
        b"x" * (HEAD_BYTES_MAX + 4),
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(NotHttp):
        Answer().feed(data)


@given(data=st.binary())
def test_no_bytes_break_the_parser_otherwise(data: bytes) -> None:
    answer = Answer()
    try:
        answer.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer.feed(data)
    except NotHttp:
        pass


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\n", "a\0"])
def test_a_header_cannot_smuggle_another(value: str) -> None:
    with pytest.raises(ValueError):
        request_bytes("GET", "/", "localhost", {"Authorization": value}, None)


@given(texts=st.lists(st.text()), places=st.lists(st.integers(0, 10_000)))
def test_events_are_whole_however_they_are_cut(texts: list[str], places: list[int]) -> None:
    stream = b"".join(f"data: {json.dumps(text)}\n\n: still here\n\n".encode() for text in texts)
    events = EventLines()
    found = [line for piece in cut(stream or b"\n", places) for line in events.feed(piece)]
    assert [json.loads(line) for line in found] == texts
