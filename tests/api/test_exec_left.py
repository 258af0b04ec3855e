"""What becomes of a session whose client is gone before it has been told of it."""

import json
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI
from starlette.types import Message

from ramet.api.exec_routes import router
from ramet.instance.held_exec import HeldExecs
from tests.api.stand_in import StandInFleet

pytestmark = pytest.mark.anyio
START: dict[str, Any] = {"start": {"command": ["hang"]}, "keep": "0s"}
TIMEOUT_S = 30.0


async def come_and_go(fleet: StandInFleet, held: HeldExecs, opening: dict[str, Any]) -> Sequence[str]:
    """Have a client send an opening, and be gone when it is to be told anything; returns what came of it."""
    app = FastAPI()
    app.include_router(router(fleet, held))
    coming: list[Message] = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": json.dumps(opening)},
    ]
    sent = list[str]()

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Message) -> None:
        sent.append(message["type"])
        if message["type"] == "websocket.send":
            raise OSError("the client is gone")

    path = "/instances/web/exec/v1"
    scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return sent


async def test_one_whose_client_never_learned_of_it_is_ended_in_time() -> None:
    fleet, held = StandInFleet(), HeldExecs()
    instance = fleet.put("web").id
    async with held.running():
        assert await come_and_go(fleet, held, START) == ["websocket.accept", "websocket.send"]
        with anyio.fail_after(TIMEOUT_S):
            while held.list(instance):
                await anyio.lowlevel.checkpoint()
    assert fleet.commands[0].is_closed


async def test_nothing_is_started_for_who_has_output_of_it_already() -> None:
    fleet, held = StandInFleet(), HeldExecs()
    fleet.put("web")
    async with held.running():
        await come_and_go(fleet, held, {**START, "since": 1})
    assert not fleet.commands
