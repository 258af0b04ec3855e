"""Exec over WebSocket: one session of a guest's agent behind one connection.

`/instances/{id}/exec` is as the official client has it: the session ends with the command, and a client that
leaves kills it. `/instances/{id}/exec/v1` is our own: a client may leave, come back, and be told what it
missed.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import structlog
from fastapi import APIRouter
from pydantic import TypeAdapter
from starlette.websockets import WebSocket, WebSocketDisconnect

from ramet.api.asked import to_exec_command
from ramet.api.bounds import about
from ramet.api.errors import answer_to
from ramet.api.exec_conversation import Conversation, read_message
from ramet.api.ports import FleetPort
from ramet.api.running import require_running
from ramet.api.times import format_time
from ramet.core.errors import Invalid, RametError
from ramet.core.ids import InstanceId
from ramet.core.units import parse_duration
from ramet.instance.fleet_types import ExecSession
from ramet.instance.held_exec import KEEP_S_DEFAULT, KEEP_S_MAX, HeldExec, HeldExecs
from ramet.wire_api.exec import STREAMS_MERGED, STREAMS_SEPARATE, ExecHeld, ExecOpening, ExecStart

_START: Final = TypeAdapter(ExecStart)
_OPENING: Final = TypeAdapter(ExecOpening)
_log = structlog.get_logger(__name__)


def router(fleet: FleetPort, held: HeldExecs) -> APIRouter:
    """Return the routes of exec; `held` keeps the sessions that clients may leave."""
    routes = APIRouter()

    @routes.websocket("/instances/{id}/exec")
    async def exec_in_instance(websocket: WebSocket, id: str) -> None:
        async with _accepted(websocket, fleet, id) as instance:
            if instance is None:
                return
            conversation = Conversation(websocket, instance)

            async def begin(raw: dict[str, Any]) -> ExecSession:
                conversation.is_separate = raw.get("streams") == STREAMS_SEPARATE
                start = read_message(_START, raw)
                if start.streams not in (STREAMS_MERGED, STREAMS_SEPARATE):
                    raise Invalid(f"streams must be {STREAMS_MERGED} or {STREAMS_SEPARATE}", field="streams")
                command = to_exec_command(start)
                conversation.has_stdin = command.has_stdin
                return await fleet.open_exec(instance, command)

            await conversation.run(begin)

    @routes.websocket("/instances/{id}/exec/v1")
    async def hold_exec_in_instance(websocket: WebSocket, id: str) -> None:
        async with _accepted(websocket, fleet, id) as instance:
            if instance is None:
                return
            conversation = Conversation(websocket, instance)
            conversation.is_separate = conversation.outlives = True

            async def begin(raw: dict[str, Any]) -> ExecSession:
                opening = read_message(_OPENING, raw)
                session = await _open(opening, fleet, held, instance)
                conversation.has_stdin = session.has_stdin
                view = session.view(opening.since)
                told = {"session": session.id, "position": view.position, "missed": view.missed_bytes}
                try:
                    await conversation.send_json(told)
                except BaseException:  # The client has left, and its session's time runs.
                    with anyio.CancelScope(shield=True):
                        await view.aclose()
                    raise
                return view

            await conversation.run(begin)

    @routes.get("/instances/{id}/exec/v1/sessions", tags=["instances"])
    async def list_exec_sessions(id: str) -> tuple[ExecHeld, ...]:
        instance = fleet.get(id).record.id
        return tuple(_shown(session) for session in held.list(instance))

    return routes


@asynccontextmanager
async def _accepted(websocket: WebSocket, fleet: FleetPort, ref: str) -> AsyncIterator[InstanceId | None]:
    """Accept a connection about a running instance, or refuse it: then there is none inside."""
    try:
        instance = require_running(fleet, ref, "commands run").record.id
    except RametError as error:
        await websocket.send_denial_response(answer_to(error))
        yield None
        return
    await websocket.accept()
    try:
        yield instance
    except WebSocketDisconnect:
        _log.info("exec_client_left", instance=instance)


async def _open(opening: ExecOpening, fleet: FleetPort, held: HeldExecs, instance: InstanceId) -> HeldExec:
    """Return the session that a first message starts, or comes back to.

    Raises:
        Invalid: it says neither or both, or how long to keep it makes no sense.
        RametError: there is no such session, or the command cannot be started.
    """
    if (opening.start is None) == (opening.attach is None):
        raise Invalid("The first message says neither start nor attach, or both", remedy="send one of them")
    if opening.attach is not None:
        return held.get(instance, opening.attach)
    assert opening.start is not None
    if opening.since:
        raise Invalid(
            f"since is {opening.since}, and what is only started has written nothing", field="since"
        )
    with about("keep"):
        keep_s = KEEP_S_DEFAULT if opening.keep is None else parse_duration(opening.keep)
    if not 0 <= keep_s <= KEEP_S_MAX:
        raise Invalid(f"keep is {opening.keep}, and must be from 0s to 24h", field="keep")
    command = to_exec_command(opening.start)
    return await held.start(instance, command, lambda: fleet.open_exec(instance, command), keep_s)


def _shown(session: HeldExec) -> ExecHeld:
    return ExecHeld(
        session.id,
        session.command.argv,
        format_time(session.started_at),
        session.position,
        attached=session.current is not None,
        exit_code=session.exit_code,
    )
