"""Files of a guest over HTTP: what a path is, and whole trees as tar streams.

An archive has no length that could be told beforehand, so its end is what proves that it is whole: an answer
that fails on its way breaks its connection before the end mark of the transfer, and a request that does so
is unpacked no further and called cut.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Annotated, Final

import anyio
import structlog
from anyio.abc import TaskGroup
from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from ramet.api.copying import Copy
from ramet.api.errors import answer_to
from ramet.api.ports import FleetPort
from ramet.api.running import require_running
from ramet.core.errors import Invalid, RametError
from ramet.instance.fleet_types import PathStat
from ramet.wire_api.errors import Error
from ramet.wire_api.files import ARCHIVE_MEDIA_TYPE, PathInfo

PATH_LENGTH_MAX: Final = 4095  # PATH_MAX of linux/limits.h, without the end.

Path = Annotated[str, Query(min_length=1, max_length=PATH_LENGTH_MAX)]
Archive = AbstractAsyncContextManager[AsyncIterator[bytes]]

_COPIED: Final = "files are copied"
_log = structlog.get_logger(__name__)


class ArchiveCut(Invalid):
    """The client went away before its archive was complete."""

    code = "archive_cut"


def router(fleet: FleetPort) -> APIRouter:
    """Return the routes on files of guests."""
    routes = APIRouter(prefix="/instances", tags=["instances"], responses={"default": {"model": Error}})

    @routes.get("/{id}/stat")
    async def stat_path(id: str, path: Path, follow_links: bool = False) -> PathInfo:
        found = require_running(fleet, id, "files are looked at")
        return _path_info(await fleet.stat_path(found.record.id, path, follow_links=follow_links))

    @routes.get("/{id}/archive", response_class=ArchiveStream, status_code=HTTPStatus.OK)
    async def read_archive(id: str, path: Path, follow_links: bool = False) -> Response:
        found = require_running(fleet, id, _COPIED)
        return ArchiveStream(fleet.open_archive(found.record.id, path, follow_links=follow_links))

    @routes.put("/{id}/archive", status_code=HTTPStatus.NO_CONTENT)
    async def write_archive(id: str, request: Request, path: Path, keep_owner: bool = False) -> None:
        found = require_running(fleet, id, _COPIED)
        await fleet.put_archive(found.record.id, path, body_of(request), keep_owner=keep_owner)

    @routes.websocket("/{id}/cp")
    async def copy(websocket: WebSocket, id: str) -> None:
        try:
            found = require_running(fleet, id, _COPIED)
        except RametError as error:
            await websocket.send_denial_response(answer_to(error))
            return
        await websocket.accept()
        try:
            await Copy(websocket, fleet, found.record.id).run()
        except WebSocketDisconnect:
            _log.info("copy_client_left", instance=found.record.id)

    return routes


class ArchiveStream(Response):
    """An answer that sends an archive as it is read, and stops reading when nobody takes it."""

    media_type = ARCHIVE_MEDIA_TYPE

    def __init__(self, archive: Archive) -> None:
        self.status_code = 200
        self.background = None
        self._archive = archive
        self._has_begun = False
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: RametError | None = None
        is_over = False  # False if the reader left.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, receive, tasks)
            try:
                await self._send_all(send)
            except RametError as failure:
                error = failure
            is_over = True
            tasks.cancel_scope.cancel()
        if error is not None and not self._has_begun:
            await answer_to(error)(scope, receive, send)
        elif error is not None:
            # Without an end mark; the server breaks the connection off.
            _log.error("archive_cut_short", code=error.code, exc_info=error)
        elif is_over:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        async with self._archive as chunks:
            async for chunk in chunks:
                if not self._has_begun:  # Only now is it known that there is something to read.
                    await self._begin(send)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if not self._has_begun:
            await self._begin(send)

    async def _begin(self, send: Send) -> None:
        self._has_begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


async def _watch(receive: Receive, tasks: TaskGroup) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    tasks.cancel_scope.cancel()


async def body_of(request: Request) -> AsyncIterator[bytes]:
    """Yield an archive that is a request's body, as it comes in.

    Raises:
        ArchiveCut: the client went away.
    """
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect as error:
        raise ArchiveCut("The archive ends before its end", remedy="send it again") from error


def _path_info(found: PathStat) -> PathInfo:
    return PathInfo(
        exists=found.exists,
        is_dir=found.is_dir,
        is_file=found.is_file,
        is_symlink=found.is_symlink,
        link_target=found.link_target,
        mode=found.mode,
        size=found.size_bytes,
        error=found.error,
    )
