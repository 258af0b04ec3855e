"""Lines as server-sent events, for as long as somebody reads them.

Each event's data is one JSON string, which is how the official client parses them. A comment now and then
keeps proxies from closing a silent stream, and tells us of a reader who left without a word.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

import anyio
from anyio.abc import TaskGroup
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEPALIVE_INTERVAL_S: Final = 15.0


class EventStream(Response):
    """An answer that sends `lines` as they come, and stops asking for them when the reader is gone."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self.status_code = 200
        self.background = None
        self._lines = lines
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_alive, send)
            tasks.start_soon(_watch, receive, tasks)
            await self._send_lines(send)
            tasks.cancel_scope.cancel()

    async def _send_lines(self, send: Send) -> None:
        if isinstance(self._lines, AsyncGenerator):
            async with aclosing(self._lines):
                await _send_all(self._lines, send)
        else:
            await _send_all(self._lines, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await anyio.sleep(KEEPALIVE_INTERVAL_S)
            await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})


async def _send_all(lines: AsyncIterator[str], send: Send) -> None:
    async for line in lines:
        event = f"data: {json.dumps(line)}\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": True})


async def _watch(receive: Receive, tasks: TaskGroup) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    tasks.cancel_scope.cancel()
