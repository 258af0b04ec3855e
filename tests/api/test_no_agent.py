"""`skip_guest_agent`: nobody enters the guest, and the API says so before anything else."""

import json
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import unix_connect

from ramet.core.spec import State
from tests.api.stand_in import Served

IMAGE = "docker.io/library/alpine:latest"
REFUSED = (409, "guest_agent_skipped")
EXEC_CHECK = {"type": "exec", "exec": {"command": ["true"]}}


def create(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"name": "web", "image": IMAGE, "skip_guest_agent": True, **fields}
    return http.post("/instances", json=body)


@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPED])
def test_nobody_enters_it_in_any_state(http: httpx.Client, served: Served, state: State) -> None:
    """That it could be started is no way in, so its state is not what is complained about."""
    made = create(http)
    assert (made.status_code, made.json()["skip_guest_agent"]) == (201, True)
    served.fleet.set("web", state)
    archive = "/instances/web/archive"
    for answer in (
        http.get("/instances/web/stat", params={"path": "/"}),
        http.get(archive, params={"path": "/"}),
        http.put(archive, params={"path": "/"}, content=b""),
    ):
        assert (answer.status_code, answer.json()["code"]) == REFUSED
    for way in ("exec", "exec/v1", "cp"):
        with (
            pytest.raises(InvalidStatus) as refused,
            unix_connect(str(served.socket), f"ws://localhost/instances/web/{way}"),
        ):
            pass
        assert (
            refused.value.response.status_code,
            json.loads(refused.value.response.body)["code"],
        ) == REFUSED
    assert served.fleet.commands == []


def test_a_check_that_would_have_to_enter_it_is_refused(http: httpx.Client, served: Served) -> None:
    refused = create(http, health_check=EXEC_CHECK)
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    assert "needs the guest's agent" in refused.json()["message"]
    assert served.fleet.list() == []
    assert create(http).status_code == 201
    refused = http.patch("/instances/web", json={"health_check": EXEC_CHECK})
    assert refused.status_code == 400
    assert "needs the guest's agent" in refused.json()["message"]
    over_tcp = {"health_check": {"type": "tcp", "tcp": {"port": 80}}}
    assert http.patch("/instances/web", json=over_tcp).status_code == 200


def test_forks_have_their_sources(http: httpx.Client) -> None:
    create(http)
    child = http.post("/instances/web/fork", json={"name": "kid", "from_running": True})
    assert (child.status_code, child.json()["skip_guest_agent"]) == (201, True)
