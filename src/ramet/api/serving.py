"""The application on a listening socket, inside somebody else's event loop.

The owner of the loop binds the socket (and so sets a unix socket's mode) and handles signals; the server does
neither.
"""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ramet.api.peers import PEER, peer_of

SHUTDOWN_TIMEOUT_S: Final = 5  # For requests under way; then they are cancelled.
KEEP_ALIVE_S: Final = 30


class HttpServer:
    """Serves `app` on `listener`, a bound stream socket; several may run in one loop."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws_per_message_deflate=False,  # Guests' output, next door: not worth the processor.
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        )
        if listener.family == socket.AF_UNIX:
            config.http = _WithPeer
        else:
            # Its connections have it, too. asyncio sets it only where a socket names its protocol; without it
            # the body of an answer waits 40 ms for the client's word that it has the headers.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server = _QuietServer(config)
        self._listener = listener
        logging.getLogger("uvicorn.error").addFilter(_is_no_false_alarm)

    async def serve(self) -> None:
        """Serve until `stop`; then requests under way have `SHUTDOWN_TIMEOUT_S` to end."""
        await self._server.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Ask `serve` to end."""
        self._server.should_exit = True


class _WithPeer(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # One of two, by what is installed.
    """Notes in each request's state who is at the other end; a WebSocket has it from the request it was."""

    app_state: dict[str, Any]

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, PEER: peer_of(transport.get_extra_info("socket"))}


def _is_no_false_alarm(record: logging.LogRecord) -> bool:
    # uvicorn 0.54 says this of every WebSocket that was refused with an answer, as ours are on purpose.
    return record.msg != "ASGI callable returned without completing handshake."


class _QuietServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the owner of the loop."""
        yield
