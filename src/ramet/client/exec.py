"""A command in a guest, over a WebSocket, with stdout and stderr apart."""

import json
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect

from ramet.client.calls import exec_path, held_exec_path, read_error
from ramet.client.client import CONNECT_TIMEOUT_S, not_reachable
from ramet.client.endpoint import Endpoint
from ramet.client.errors import ApiError, ConnectionBroken
from ramet.wire_api.codec import decode, encode
from ramet.wire_api.errors import Error
from ramet.wire_api.exec import (
    OUTPUT_MESSAGE_BYTES_MAX,
    STDERR,
    STDIN_MESSAGE_BYTES,
    STDOUT,
    STREAMS_SEPARATE,
    ExecOpening,
    ExecStart,
)

_MESSAGE_BYTES_MAX: Final = 2 * OUTPUT_MESSAGE_BYTES_MAX


class ExecConnection:
    """A command that was started; leaving the `with` kills it if it still runs.

    One thread may read `output`; others may send meanwhile.

    Raises:
        ApiError, NotReachable, ConnectionBroken: it could not be started; see `Client`.
    """

    def __init__(self, endpoint: Endpoint, ref: str, start: ExecStart) -> None:
        self._connect(endpoint, exec_path(ref), encode(replace(start, streams=STREAMS_SEPARATE)))

    def _connect(self, endpoint: Endpoint, path: str, first: object) -> None:
        self._endpoint = endpoint
        self._websocket = _open(endpoint, path)
        self._exit_code: int | None = None
        try:
            self._send(json.dumps(first))
        except BaseException:
            self._websocket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._websocket.close()

    def write(self, data: bytes) -> None:
        """Send stdin; waits while the command does not read."""
        for at in range(0, len(data), STDIN_MESSAGE_BYTES):
            self._send(data[at : at + STDIN_MESSAGE_BYTES])

    def close_stdin(self) -> None:
        """Tell the command that stdin has ended."""
        self._send(json.dumps({"stdinEof": True}))

    def send_signal(self, number: int) -> None:
        """Send the command a signal."""
        self._send(json.dumps({"signal": number}))

    def resize(self, rows: int, cols: int) -> None:
        """Tell the command's terminal its new size; without effect if it has none."""
        self._send(json.dumps({"resize": {"rows": rows, "cols": cols}}))

    def abandon(self) -> None:
        """End the connection, and with it the command; whoever reads `output` gets ConnectionBroken."""
        self._websocket.close()

    def output(self) -> Iterator[tuple[int, bytes]]:
        """Yield (1, stdout bytes) and (2, stderr bytes) until the command has ended.

        Raises:
            ApiError: it could not be run.
            ConnectionBroken: the connection ended before it.
        """
        while self._exit_code is None:
            try:
                message = self._websocket.recv()
            except ConnectionClosed as error:
                raise self._broken(error) from error
            if isinstance(message, str):
                self._exit_code = _end(message)
            elif message[:1] and message[0] in (STDOUT, STDERR):
                if len(message) > 1:
                    yield message[0], message[1:]
            else:
                raise ConnectionBroken("The server sent output of neither stdout nor stderr")

    @property
    def exit_code(self) -> int:
        """The exit code, as a shell tells it; only after `output` has ended."""
        assert self._exit_code is not None, "the output has not been read to its end"
        return self._exit_code

    def _send(self, message: str | bytes) -> None:
        try:
            self._websocket.send(message)
        except ConnectionClosed as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> ConnectionBroken:
        return ConnectionBroken(f"The connection to {self._endpoint} ended before the command: {error}")


class HeldExecConnection(ExecConnection):
    """A command that goes on when the `with` is left, and can be come back to.

    Attributes:
        session: its id.
        position: where in its output the connection begins, in bytes of both streams together.
        missed_bytes: how much of what was asked for the server has not kept.

    Raises:
        ApiError, NotReachable, ConnectionBroken: it could not be started, or is not there any more.
    """

    def __init__(self, endpoint: Endpoint, ref: str, opening: ExecOpening) -> None:
        self._connect(endpoint, held_exec_path(ref), encode(opening))
        try:
            message = self._websocket.recv()
            told = json.loads(message)
            if "session" not in told:
                _end(str(message))
            self.session: str = told["session"]
            self.position: int = told["position"]
            self.missed_bytes: int = told["missed"]
        except ConnectionClosed as error:
            self._websocket.close()
            raise self._broken(error) from error
        except (ValueError, TypeError, KeyError) as error:
            self._websocket.close()
            raise ConnectionBroken("The server did not say which session it is") from error
        except BaseException:
            self._websocket.close()
            raise


def _open(endpoint: Endpoint, path: str) -> ClientConnection:
    path = endpoint.prefix + path
    try:
        if endpoint.socket_path is not None:
            return unix_connect(
                endpoint.socket_path,
                f"ws://localhost{path}",
                additional_headers=endpoint.headers,
                compression=None,
                max_size=_MESSAGE_BYTES_MAX,
                open_timeout=CONNECT_TIMEOUT_S,
            )
        return connect(
            f"{'wss' if endpoint.is_tls else 'ws'}://{endpoint.authority}{path}",
            additional_headers=endpoint.headers,
            compression=None,
            max_size=_MESSAGE_BYTES_MAX,
            open_timeout=CONNECT_TIMEOUT_S,
            proxy=None,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        raise ApiError(status, read_error(status, bytes(error.response.body or b""))) from error
    except (InvalidHandshake, InvalidMessage, EOFError) as error:
        raise ConnectionBroken(f"The server at {endpoint} does not speak WebSocket: {error}") from error
    except OSError as error:
        raise not_reachable(endpoint, error) from error


def _end(message: str) -> int:
    """Return the exit code that the last message tells, or raise the error it holds."""
    try:
        value = json.loads(message)
        if isinstance(value, dict) and isinstance(value.get("exitCode"), int):
            exit_code: int = value["exitCode"]
            return exit_code
        error = decode(Error, value["error"])
    except (ValueError, KeyError, TypeError) as broken:
        raise ConnectionBroken(f"The server sent what is no end: {message[:100]}") from broken
    raise ApiError(0, error)
