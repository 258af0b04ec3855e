"""The unix socket: who is at its other end decides what may be asked for."""

import json
import os
import socket
import subprocess
from http import HTTPStatus
from typing import Any

import pytest

from ramet.api.auth import Refused
from ramet.api.peers import PEER, Peer, PeerAuth, peer_of
from ramet.core.spec import State
from tests.api.stand_in import READER_UID, Served

NOBODY_UID = 65_534
AUTH = PeerAuth({READER_UID: ("instance:read",), READER_UID - 1: ("*",)})

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


def ask(served: Served, uid: int, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
    """Ask as another user; return status and body."""
    options = [part for name, value in headers.items() for part in ("--header", f"{name}: {value}")]
    command = ["curl", "--silent", "--unix-socket", str(served.socket), "--request", method, *options]
    done = subprocess.run(
        [*command, "--write-out", "\n%{http_code}", f"http://localhost{path}"],
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body) if body else None


def admit(uid: int, needed: str | None) -> str:
    return AUTH.admit({"state": {PEER: Peer(1, uid, uid)}}, needed)


def test_the_kernel_tells_who_is_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == Peer(os.getpid(), os.geteuid(), os.getegid())


def test_root_and_our_own_user_may_do_everything() -> None:
    assert {admit(uid, "*") for uid in (0, os.geteuid())} == {""}


def test_others_may_do_what_is_listed_and_are_told_apart() -> None:
    assert admit(READER_UID, "instance:read") == f"uid {READER_UID}"
    assert admit(READER_UID, None) == f"uid {READER_UID}"
    assert admit(READER_UID - 1, "image:delete") != admit(READER_UID, None)


@pytest.mark.parametrize(("uid", "needed"), [(READER_UID, "instance:write"), (NOBODY_UID, "instance:read")])
def test_the_rest_is_refused_with_what_is_missing(uid: int, needed: str) -> None:
    with pytest.raises(Refused) as refused:
        admit(uid, needed)
    assert (refused.value.status, refused.value.scope) == (HTTPStatus.FORBIDDEN, needed)
    assert "socket_users" in refused.value.remedy


@needs_root
def test_another_user_who_connects_may_do_what_is_listed(served: Served) -> None:
    served.fleet.put("web")
    status, found = ask(served, READER_UID, "/instances")
    assert (status, [one["name"] for one in found]) == (200, ["web"])
    status, refused = ask(served, READER_UID, "/instances/web/stop", "POST")
    assert (status, refused["code"], refused["fields"]) == (403, "forbidden", {"scope": "instance:write"})
    assert served.fleet.get("web").record.state is State.RUNNING


@needs_root
def test_a_stranger_who_connects_learns_no_more_than_that_we_are_there(served: Served) -> None:
    assert ask(served, NOBODY_UID, "/health") == (200, {"status": "ok"})
    for path in ("/instances", "/metrics", "/capabilities"):
        status, refused = ask(served, NOBODY_UID, path)
        assert (status, refused["code"]) == (403, "forbidden")


@needs_root
def test_a_websocket_is_guarded_as_well(served: Served) -> None:
    served.fleet.put("web")
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "c2l4dGVlbiBieXRlcyEhIQ==",
    }
    status, refused = ask(served, READER_UID, "/instances/web/exec", **upgrade)
    assert (status, refused["fields"]) == (403, {"scope": "instance:write"})
