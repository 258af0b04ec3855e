"""One conversation about one command: what a client says and what a command does, over one WebSocket.

Three things go on at once: what the client sends is read, what it sent is fed to the command at the command's
pace, and the output is sent as it comes. It ends with the command, or when the client leaves.
"""

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, TypeVar

import anyio
import structlog
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from pydantic import TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ramet.api import strict_json
from ramet.api.errors import error_body, invalid, status_of, to_wire
from ramet.core.errors import Invalid, RametError
from ramet.instance.fleet_types import ExecSession, WindowSize
from ramet.wire_api.exec import (
    COMMAND_NOT_FOUND_EXIT_CODE,
    NOT_EXECUTABLE_EXIT_CODE,
    OUTPUT_MESSAGE_BYTES_MAX,
    STDOUT,
)

START_TIMEOUT_S: Final = 30.0  # From the handshake to the first message.
STDIN_MESSAGES_MAX: Final = 16  # Waiting for a command that does not read.
STALL_CHECK_S: Final = 10.0  # How soon a client that left is noticed while its stdin is stuck.
DRAIN_TIMEOUT_S: Final = 10.0  # For what a client that left had sent, of a command that outlives it.
SIGNAL_MAX: Final = 64

T = TypeVar("T")
Begin = Callable[[dict[str, Any]], Awaitable[ExecSession]]
"""Takes the first message, and returns the session that it asks for."""
_log = structlog.get_logger(__name__)


class _Eof:
    """Stands in the queue behind the last bytes of stdin."""


class Conversation:
    """One accepted connection.

    `is_separate`: stdout and stderr are told apart, and so are failures from output; `has_stdin`: the command
    reads what the client sends; `outlives`: it goes on when the client leaves, and reads what it had sent.
    Whoever begins the session says so.
    """

    def __init__(self, websocket: WebSocket, instance: str) -> None:
        self.is_separate = False
        self.has_stdin = True
        self.outlives = False
        self._websocket = websocket
        self._instance = instance
        self._exit_code: int | None = None
        self._failure: RametError | None = None

    async def run(self, begin: Begin) -> None:
        """Serve it until the command has ended.

        Raises:
            WebSocketDisconnect: the client left before.
        """
        try:
            session = await begin(await self._first_message())
        except RametError as error:
            await self._end_with(error)
            return
        try:
            end = await self._converse(session)
        except RametError as error:
            await self._end_with(error)
        else:
            if end is not None:
                await self.send_json({"exitCode": end})
                await self._websocket.close()
        finally:
            with anyio.CancelScope(shield=True):
                await session.aclose()

    async def _first_message(self) -> dict[str, Any]:
        with anyio.move_on_after(START_TIMEOUT_S):
            return _parse(await _text_of(self._websocket))
        raise Invalid("The first message did not come in time", remedy="send the command first")

    async def _converse(self, session: ExecSession) -> int | None:
        """Carry bytes both ways; return the exit code, or None if the client left.

        Raises:
            RametError: the session failed, or the client sent what cannot be understood.
        """
        queue, waiting = anyio.create_memory_object_stream[bytes | _Eof](STDIN_MESSAGES_MAX)
        async with queue, waiting:
            async with anyio.create_task_group() as tasks:
                scope = tasks.cancel_scope
                tasks.start_soon(self._guard, scope, lambda: self._listen(session, queue))
                tasks.start_soon(self._guard, scope, lambda: _feed(session, waiting))
                await self._guard(scope, lambda: self._send_all(session))
                scope.cancel()
            if self.outlives and self._exit_code is None:
                queue.close()
                with anyio.move_on_after(DRAIN_TIMEOUT_S):
                    await self._guard(scope, lambda: _feed(session, waiting))
        if self._exit_code is None and self._failure is not None:
            raise self._failure
        return self._exit_code

    async def _guard(self, scope: anyio.CancelScope, step: Callable[[], Awaitable[None]]) -> None:
        """Run one of the three; if it fails, note why and end the others."""
        try:
            await step()
        except RametError as error:
            self._failure = self._failure or error
            scope.cancel()
        except WebSocketDisconnect:
            scope.cancel()

    async def _send_all(self, session: ExecSession) -> None:
        async for stream, data in session.output():
            await self._send_output(stream, data)
        self._exit_code = (await session.wait()).exit_code

    async def _listen(self, session: ExecSession, queue: ObjectSendStream[bytes | _Eof]) -> None:
        """Read the client until it leaves.

        Raises:
            WebSocketDisconnect: it left.
            Invalid: what it sent cannot be understood.
        """
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1006))
            item: bytes | _Eof | None = message.get("bytes")
            if item is None:
                item = await _control(session, _parse(message.get("text") or ""))
            if item is None:
                continue
            if not self.has_stdin:
                if isinstance(item, bytes) and item:
                    raise Invalid("There is no stdin to send to: it was not asked for, or was ended before")
                continue
            self.has_stdin = isinstance(item, bytes)
            await self._enqueue(queue, item)

    async def _enqueue(self, queue: ObjectSendStream[bytes | _Eof], item: bytes | _Eof) -> None:
        while True:
            with anyio.move_on_after(STALL_CHECK_S):
                await queue.send(item)
                return
            await self._send_output(STDOUT, b"")  # Raises if nobody is there.

    async def _send_output(self, stream: int, data: bytes) -> None:
        head = bytes([stream]) if self.is_separate else b""
        for at in range(0, max(len(data), 1), OUTPUT_MESSAGE_BYTES_MAX):
            await self._websocket.send_bytes(head + data[at : at + OUTPUT_MESSAGE_BYTES_MAX])

    async def _end_with(self, error: RametError) -> None:
        if self._websocket.client_state is not WebSocketState.CONNECTED:
            return
        if status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("exec_failed", code=error.code, instance=self._instance, exc_info=error)
        if self.is_separate:
            await self.send_json({"error": error_body(to_wire(error))})
        else:
            await self._send_output(STDOUT, f"{error}\n".encode())
            not_executable = error.code == "not_executable"
            code = NOT_EXECUTABLE_EXIT_CODE if not_executable else COMMAND_NOT_FOUND_EXIT_CODE
            await self.send_json({"exitCode": code})
        await self._websocket.close()

    async def send_json(self, value: dict[str, Any]) -> None:
        """Send a text message."""
        await self._websocket.send_text(json.dumps(value, separators=(",", ":")))


def read_message(kind: TypeAdapter[T], raw: dict[str, Any]) -> T:
    """Return what a message says.

    Raises:
        Invalid: it is no such message.
    """
    try:
        return kind.validate_python(raw)
    except ValidationError as error:
        raise Invalid(invalid([dict(problem) for problem in error.errors()]).message) from error


async def _feed(session: ExecSession, waiting: ObjectReceiveStream[bytes | _Eof]) -> None:
    async for item in waiting:
        if isinstance(item, bytes):
            await session.write(item)
        else:
            await session.close_stdin()


async def _text_of(websocket: WebSocket) -> str:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    text = message.get("text")
    if not isinstance(text, str):
        raise Invalid("The first message must be text: the command as JSON")
    return text


def _parse(text: str) -> dict[str, Any]:
    value = strict_json.parse(text)
    if not isinstance(value, dict):
        raise Invalid("A text message is not a JSON object")
    return value


async def _control(session: ExecSession, message: dict[str, Any]) -> _Eof | None:
    """Do what a text message asks; return what must wait its turn behind stdin."""
    match message:
        case {"stdinEof": True}:
            return _Eof()
        case {"signal": int(number)} if 1 <= number <= SIGNAL_MAX:
            await session.send_signal(number)  # Overtakes stdin, which the command may not be reading.
            return None
        case {"resize": {"rows": int(rows), "cols": int(cols)}}:
            await session.resize(WindowSize(rows, cols))
            return None
        case _:
            raise Invalid(f"A text message has none of our members: {', '.join(map(str, message))[:80]}")
