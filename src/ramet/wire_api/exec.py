"""The messages of an exec session, which is one WebSocket on `/instances/{id}/exec`.

The first message, text, is an `ExecStart`; the session ends with a text message `{"exitCode": n}`. Between
them bytes flow in binary messages: stdin to the server, output from it. Nothing in the compatible protocol
ends stdin or tells stderr from stdout. A client that says `"streams": "separate"` gets both: each binary
message from the server then begins with `STDOUT` or `STDERR`; the client may send `{"stdinEof": true}` and
`{"signal": n}`; and a session that cannot begin ends with `{"error": Error}` instead of text in the output.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

STDOUT: Final = 1
STDERR: Final = 2
STREAMS_SEPARATE: Final = "separate"
STREAMS_MERGED: Final = "merged"
OUTPUT_MESSAGE_BYTES_MAX: Final = 256 << 10  # The official client refuses more than 1 MiB.
STDIN_MESSAGE_BYTES: Final = 32 << 10
COMMAND_NOT_FOUND_EXIT_CODE: Final = 127  # As a shell has it; also what ends a session that cannot begin.
NOT_EXECUTABLE_EXIT_CODE: Final = 126


@dataclass(frozen=True, slots=True)
class ExecStart:
    """The first message. `timeout` and `wait_for_agent` in seconds, 0 for none.

    Additive: `user`; `streams`, "separate" or "merged"; `stdin`, false for a command that reads nothing.
    """

    command: tuple[str, ...] = ("/bin/sh",)
    tty: bool = False
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    timeout: float = 0
    wait_for_agent: float = 0
    rows: int | None = None
    cols: int | None = None
    user: str | None = None
    streams: str = STREAMS_MERGED
    stdin: bool = True

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ExecOpening:
    """The first message on `/instances/{id}/exec/v1`: `start` a command, or `attach` to a session by its id.

    `keep` is how long the session is there while nobody is attached, such as "10m"; `since` how many bytes of
    output, of both streams together, the client has. Streams are separate here, whatever `start` says.
    """

    start: ExecStart | None = None
    keep: str | None = None
    attach: str | None = None
    since: int = 0

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ExecHeld:
    """A session that its client may leave. `position`: bytes it has written, both streams together."""

    id: str
    command: tuple[str, ...]
    started_at: str
    position: int
    attached: bool
    exit_code: int | None = None
