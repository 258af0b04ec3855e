"""Exec sessions as they look on the wire."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import unix_connect
from websockets.sync.connection import Connection

from ramet.api import exec_conversation
from tests.api.stand_in import Served


@pytest.fixture
def websocket(served: Served) -> Iterator[Connection]:
    served.fleet.put("web")
    with unix_connect(str(served.socket), "ws://localhost/instances/web/exec", compression=None) as websocket:
        yield websocket


def start(websocket: Connection, *command: str, **members: Any) -> None:
    websocket.send(json.dumps({"command": command, **members}))


def until_the_end(websocket: Connection) -> tuple[list[bytes], dict[str, Any]]:
    """Return the binary messages and the last one, parsed."""
    output = []
    while isinstance(message := websocket.recv(), bytes):
        output.append(message)
    end: dict[str, Any] = json.loads(message)
    return output, end


def wait_until_ended(served: Served) -> None:
    """Wait until the first command has been ended; each further exec is many turns of the server's loop."""
    for _ in range(1000):
        if served.fleet.commands and served.fleet.commands[0].is_closed:
            return
        with unix_connect(str(served.socket), "ws://localhost/instances/web/exec") as other:
            start(other, "echo")
            until_the_end(other)
    raise AssertionError("the command was never ended")


def test_without_asking_output_is_merged(websocket: Connection) -> None:
    start(websocket, "fail", "oops", "3")
    assert until_the_end(websocket) == ([b"before ", b"oops"], {"exitCode": 3})


def test_streams_are_told_apart_on_request(websocket: Connection) -> None:
    start(websocket, "fail", "oops", "3", streams="separate")
    assert until_the_end(websocket) == ([b"\x01before ", b"\x02oops"], {"exitCode": 3})


def test_stdin_can_end(websocket: Connection) -> None:
    start(websocket, "cat", streams="separate")
    websocket.send(b"one")
    websocket.send('{"stdinEof": true}')
    assert until_the_end(websocket) == ([b"\x01one"], {"exitCode": 0})


def test_a_command_may_do_without_stdin(websocket: Connection, served: Served) -> None:
    start(websocket, "cat", streams="separate", stdin=False)
    assert until_the_end(websocket) == ([], {"exitCode": 0})


@pytest.mark.parametrize("before", ["stdin was not asked for", "stdin has ended"])
def test_stdin_that_nobody_can_read_is_refused(websocket: Connection, before: str) -> None:
    is_asked_for = before == "stdin has ended"
    start(websocket, "hang", streams="separate", stdin=is_asked_for)
    if is_asked_for:
        websocket.send('{"stdinEof": true}')
        websocket.send('{"stdinEof": true}')
    websocket.send(b"too late")
    assert until_the_end(websocket)[1]["error"]["code"] == "bad_request"


def test_a_signal_overtakes_stdin_that_is_not_read(websocket: Connection) -> None:
    start(websocket, "hang", streams="separate")
    websocket.send(b"never read")
    websocket.send('{"signal": 9}')
    assert until_the_end(websocket)[1] == {"exitCode": 128 + 9}


def test_a_client_that_leaves_ends_the_command(websocket: Connection, served: Served) -> None:
    start(websocket, "hang")
    websocket.send(b"x")
    websocket.close()
    wait_until_ended(served)


def test_a_client_that_leaves_is_noticed_although_its_stdin_is_stuck(
    websocket: Connection, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_conversation, "STALL_CHECK_S", 0.01)
    start(websocket, "hang")
    for _ in range(exec_conversation.STDIN_MESSAGES_MAX * 2):
        websocket.send(b"x")
    websocket.socket.shutdown(socket.SHUT_RDWR)  # It is not even read any more that we say goodbye.
    wait_until_ended(served)


@pytest.mark.parametrize("streams", ["merged", "separate"])
def test_a_session_that_breaks_says_so_behind_its_output(websocket: Connection, streams: str) -> None:
    start(websocket, "broken", streams=streams)
    output, end = until_the_end(websocket)
    if streams == "merged":
        assert (b"".join(output), end) == (b"so far the guest went away\n", {"exitCode": 127})
    else:
        assert (output, end["error"]["message"]) == ([b"\x01so far "], "the guest went away")


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"binary", "must be text"),
        ("no json", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"command": []}', "command is empty"),
        ('{"command": "ls"}', "'command'"),
        ('{"command": ["ls"], "colour": 1}', "no field 'colour'"),
        ('{"command": ["ls"], "streams": "braided"}', "streams must be"),
        ('{"command": ["ls"], "timeout": -1}', "negative"),
        ('{"command": ["ls"], "tty": true, "rows": 0, "cols": 80}', "0 rows"),
        ('{"command": ["ls"], "tty": true, "rows": "many"}', "'rows'"),
    ],
)
def test_a_first_message_that_makes_no_sense_is_refused(
    websocket: Connection, served: Served, first: str | bytes, says: str
) -> None:
    websocket.send(first)
    output, end = until_the_end(websocket)
    assert says in (b"".join(output).decode() + json.dumps(end))
    assert served.fleet.commands == []
    with pytest.raises(ConnectionClosed):
        websocket.recv()


@pytest.mark.parametrize("text", ["{", "7", '{"signal": 0}', '{"signal": 65}', '{"stdinEof": false}', "{}"])
def test_a_text_message_that_makes_no_sense_ends_the_session(
    websocket: Connection, served: Served, text: str
) -> None:
    start(websocket, "hang", streams="separate")
    websocket.send(text)
    assert until_the_end(websocket)[1]["error"]["code"] == "bad_request"
    wait_until_ended(served)


def test_a_terminal_that_is_not_there_can_be_resized(websocket: Connection) -> None:
    start(websocket, "cat", streams="separate")
    websocket.send('{"resize": {"rows": 24, "cols": 80}}')
    websocket.send('{"stdinEof": true}')
    assert until_the_end(websocket)[1] == {"exitCode": 0}


def test_a_terminal_follows_its_size(websocket: Connection) -> None:
    start(websocket, "shell", streams="separate", tty=True)
    assert websocket.recv() == b"\x01size 24x80\r\n"
    websocket.send('{"resize": {"rows": 50, "cols": 132}}')
    assert websocket.recv() == b"\x01size 50x132\r\n"
    websocket.send(b"exit\r")
    assert until_the_end(websocket)[1] == {"exitCode": 7}


@pytest.mark.parametrize(
    "size", ['{"rows": 0, "cols": 80}', '{"rows": 1, "cols": 65536}', '{"rows": 1}', "7"]
)
def test_a_size_that_no_terminal_has_ends_the_session(
    websocket: Connection, served: Served, size: str
) -> None:
    start(websocket, "shell", streams="separate", tty=True)
    websocket.send(f'{{"resize": {size}}}')
    assert until_the_end(websocket)[1]["error"]["code"] in ("bad_request", "window_size_invalid")
    wait_until_ended(served)
