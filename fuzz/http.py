"""What comes over HTTP: the server's answers as the client reads them, a client's exec messages as we do."""

import json
from contextlib import suppress

from pydantic import TypeAdapter, ValidationError

from fuzz.wire import cuts
from ramet.api import strict_json
from ramet.api.asked import to_exec_command
from ramet.client.http1 import Answer, EventLines, NotHttp
from ramet.core.errors import RametError
from ramet.wire.messages import dump
from ramet.wire_api.codec import decode, encode
from ramet.wire_api.exec import ExecStart
from ramet.wire_api.instances import ForkManyResult, Instance

_START: TypeAdapter[ExecStart] = TypeAdapter(ExecStart)


def http1(data: bytes) -> None:
    """However an answer is cut, its status, headers and body are the same, and so are its events.

    The first byte decides how it is cut.
    """
    if not data:
        return
    seed, stream = data[0], data[1:]
    assert _read([stream]) == _read(list(cuts(stream, seed))), "cut, the answer is another"
    try:
        expected = EventLines().feed(stream)
    except NotHttp:
        return
    events = EventLines()
    assert [line for piece in cuts(stream, seed) for line in events.feed(piece)] == expected


def _read(pieces: list[bytes]) -> tuple[object, ...]:
    answer = Answer()
    body = b""
    try:
        for piece in [*(piece for piece in pieces if piece), b""]:
            body += answer.feed(piece)
    except NotHttp:
        return ("not http",)
    return answer.status, answer.headers, body, answer.is_complete


def exec_messages(data: bytes) -> None:
    """The first message of an exec session is a command the guest can be told, or is refused."""
    try:
        command = to_exec_command(_START.validate_python(strict_json.parse(data)))
    except (RametError, ValidationError):
        return
    dump({"argv": list(command.argv), "env": dict(command.env), "timeout_s": command.timeout_s})


def codec(data: bytes) -> None:
    """A server's JSON is what the client expects or a ValueError."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return
    for kind in (Instance, ForkManyResult):
        with suppress(ValueError):
            encode(decode(kind, raw))
