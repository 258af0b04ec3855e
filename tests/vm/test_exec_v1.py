"""A command in a real guest goes on while its client is away."""

import json
from typing import Any

import httpx
import pytest
from websockets.sync.client import unix_connect
from websockets.sync.connection import Connection

from tests.vm.daemon import Daemon

pytestmark = pytest.mark.vm

COMMAND = ["sh", "-c", "echo begun; read line; echo got $line; echo oops >&2; exit 3"]


def connect(served: Daemon) -> Connection:
    return unix_connect(str(served.folder / "api.sock"), "ws://localhost/instances/web/exec/v1")


def opened(websocket: Connection, opening: dict[str, Any]) -> dict[str, Any]:
    websocket.send(json.dumps(opening))
    told: dict[str, Any] = json.loads(websocket.recv())
    return told


def test_a_client_leaves_and_comes_back(served: Daemon) -> None:
    with connect(served) as websocket:
        session = opened(websocket, {"start": {"command": COMMAND}})["session"]
        websocket.send(b"hello\n")
        assert websocket.recv() == b"\x01begun\n"
    with connect(served) as websocket:
        told = opened(websocket, {"attach": session, "since": len("begun\n")})
        assert (told["position"], told["missed"]) == (6, 0)
        messages = list(websocket)
    assert b"".join(part for part in messages if isinstance(part, bytes)) in (
        b"\x01got hello\n\x02oops\n",
        b"\x02oops\n\x01got hello\n",
    )
    assert json.loads(messages[-1]) == {"exitCode": 3}
    transport = httpx.HTTPTransport(uds=str(served.folder / "api.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost") as http:
        listed = http.get("/instances/web/exec/v1/sessions").json()
    (shown,) = [each for each in listed if each["id"] == session]
    assert (shown["exit_code"], shown["attached"], shown["command"]) == (3, False, COMMAND)
