"""Exec sessions whose client may leave and come back."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from websockets.sync.client import unix_connect
from websockets.sync.connection import Connection

from tests.api.stand_in import Served

Connect = Callable[..., AbstractContextManager[Connection]]


@pytest.fixture
def connect(served: Served) -> Connect:
    served.fleet.put("web")
    return lambda name="web": unix_connect(str(served.socket), f"ws://localhost/instances/{name}/exec/v1")


def start(websocket: Connection, *command: str, keep: str | None = None, **more: Any) -> str:
    """Start a command, and return the id of its session."""
    websocket.send(json.dumps({"start": {"command": command, **more}, "keep": keep}))
    told = json.loads(websocket.recv())
    assert (told["position"], told["missed"]) == (0, 0)
    session: str = told["session"]
    return session


def attach(websocket: Connection, session: str, since: int = 0) -> dict[str, Any]:
    websocket.send(json.dumps({"attach": session, "since": since}))
    told: dict[str, Any] = json.loads(websocket.recv())
    return told


def until_the_end(websocket: Connection) -> tuple[bytes, dict[str, Any]]:
    output = b""
    for message in websocket:
        if isinstance(message, str):
            return output, json.loads(message)
        output += message[1:]
    raise AssertionError("it closed without an end")


def listed(http: httpx.Client) -> dict[str, Any]:
    """Return the sessions by id; those of tests before may be among them."""
    return {found["id"]: found for found in http.get("/instances/web/exec/v1/sessions").json()}


def test_a_command_is_run_to_its_end(connect: Connect) -> None:
    with connect() as websocket:
        start(websocket, "fail", "oops", "3")
        assert [websocket.recv(), websocket.recv()] == [b"\x01before ", b"\x02oops"]
        assert json.loads(websocket.recv()) == {"exitCode": 3}


def test_who_comes_back_is_told_the_rest(connect: Connect, served: Served) -> None:
    with connect() as websocket:
        session = start(websocket, "cat")
        websocket.send(b"one")
        assert websocket.recv() == b"\x01one"
    with connect() as websocket:
        assert attach(websocket, session, 3) == {"session": session, "position": 3, "missed": 0}
        websocket.send(b"two")
        assert websocket.recv() == b"\x01two"
        websocket.send('{"stdinEof": true}')
        assert until_the_end(websocket) == (b"", {"exitCode": 0})
    assert len(served.fleet.commands) == 1


def test_who_comes_back_after_the_end_is_told_all(connect: Connect, http: httpx.Client) -> None:
    with connect() as websocket:
        session = start(websocket, "cat")
        websocket.send(b"hello")
        websocket.send('{"stdinEof": true}')
    for _ in range(2):
        with connect() as websocket:
            attach(websocket, session)
            assert until_the_end(websocket) == (b"hello", {"exitCode": 0})
    shown = listed(http)[session]
    assert (shown["attached"], shown["exit_code"]) == (False, 0)


def test_sessions_are_listed(connect: Connect, http: httpx.Client) -> None:
    with connect() as websocket:
        session = start(websocket, "cat")
        websocket.send(b"four")
        websocket.recv()
        shown = listed(http)[session]
        assert (shown["id"], shown["command"], shown["position"]) == (session, ["cat"], 4)
        assert (shown["attached"], shown["exit_code"]) == (True, None)


def test_a_second_client_takes_the_session(connect: Connect) -> None:
    with connect() as first, connect() as second:
        session = start(first, "cat")
        attach(second, session)
        assert until_the_end(first)[1]["error"]["code"] == "exec_session_taken"
        second.send(b"mine")
        assert second.recv() == b"\x01mine"


def test_a_session_that_nobody_comes_back_to_is_ended(connect: Connect, served: Served) -> None:
    with connect() as websocket:
        session = start(websocket, "hang", keep="0s")
    while True:
        with connect() as websocket:
            if attach(websocket, session).get("error", {}).get("code") == "exec_session_not_found":
                break
    assert served.fleet.commands[0].is_closed


def test_a_session_belongs_to_its_instance(connect: Connect, served: Served) -> None:
    served.fleet.put("other")
    with connect() as websocket, connect("other") as other:
        session = start(websocket, "cat")
        assert attach(other, session)["error"]["code"] == "exec_session_not_found"


def test_a_signal_reaches_a_command_that_was_left(connect: Connect) -> None:
    with connect() as websocket:
        session = start(websocket, "hang")
    with connect() as websocket:
        attach(websocket, session)
        websocket.send('{"signal": 9}')
        assert until_the_end(websocket) == (b"hanging\n", {"exitCode": 137})


def test_one_that_breaks_says_so(connect: Connect) -> None:
    with connect() as websocket:
        start(websocket, "broken")
        output, end = until_the_end(websocket)
        assert (output, end["error"]["message"]) == (b"so far ", "the guest went away")


@pytest.mark.parametrize(
    ("opening", "code"),
    [
        ({}, "bad_request"),
        ({"start": {"command": ["cat"]}, "attach": "x"}, "bad_request"),
        ({"start": {"command": []}}, "bad_request"),
        ({"start": {"command": ["cat"], "nobody": 1}}, "bad_request"),
        ({"start": {"command": ["cat"]}, "keep": "soon"}, "bad_request"),
        ({"start": {"command": ["cat"]}, "keep": "25h"}, "bad_request"),
        ({"attach": "nobody"}, "exec_session_not_found"),
        ({"attach": 7}, "bad_request"),
    ],
)
def test_an_opening_that_makes_no_sense_is_refused(
    connect: Connect, opening: dict[str, Any], code: str
) -> None:
    with connect() as websocket:
        websocket.send(json.dumps(opening))
        assert until_the_end(websocket)[1]["error"]["code"] == code


@pytest.mark.parametrize("since", [-1, 5])
def test_nobody_has_what_was_never_written(connect: Connect, since: int) -> None:
    with connect() as websocket:
        session = start(websocket, "cat")
        websocket.send(b"four")
        websocket.recv()
        with connect() as other:
            assert attach(other, session, since)["error"]["code"] == "bad_request"
