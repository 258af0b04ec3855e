"""Tokens: who is let in over TCP, and for what."""

import time
from contextlib import closing

import httpx
import jwt
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from fuzz.api import Api
from ramet.api.auth import TokenAuth, WeakSecret, scope_of
from ramet.telemetry.timings import operation
from ramet.wire_api.scopes import EVERYTHING, SCOPES
from tests.api.stand_in import SECRET, Served, token


def get(served: Served, path: str, bearer: str | None) -> httpx.Response:
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    return httpx.get(served.url + path, headers=headers)


@pytest.mark.parametrize("path", ["/health", "/spec.json", "/spec.yaml", "/swagger"])
def test_a_few_paths_are_open(served: Served, path: str) -> None:
    assert get(served, path, None).status_code == 200


@pytest.mark.parametrize(
    "path", ["/instances", "/capabilities", "/metrics", "/volumes", "/nothing", "/health/", "/"]
)
def test_everything_else_needs_a_token(served: Served, path: str) -> None:
    answer = get(served, path, None)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_metrics_are_for_those_who_may_read_resources(served: Served) -> None:
    assert get(served, "/metrics", token("instance:read")).status_code == 403
    with operation("told"):
        pass
    answer = get(served, "/metrics", token("resource:read"))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "process_cpu_seconds_total" in answer.text
    assert 'ramet_operation_seconds_count{hypervisor="",operation="told"' in answer.text


@pytest.mark.parametrize(
    "bearer",
    [
        token(secret="another secret that is long enough too"),
        token(lifetime_s=-60),
        jwt.encode({"exp": time.time() + 60}, SECRET, algorithm="HS256"),
        jwt.encode({"sub": "tester"}, SECRET, algorithm="HS256"),
        jwt.encode({"sub": "tester", "exp": time.time() + 60}, None, algorithm="none"),
        jwt.encode({"sub": "tester", "exp": time.time() + 60}, SECRET * 2, algorithm="HS512"),
        "nonsense",
    ],
    ids=["foreign", "expired", "no subject", "no expiry", "unsigned", "other algorithm", "nonsense"],
)
def test_a_bad_token_is_refused(served: Served, bearer: str) -> None:
    assert get(served, "/instances", bearer).status_code == 401


@pytest.mark.parametrize(
    ("permissions", "method", "path", "status"),
    [
        (["instance:read"], "GET", "/instances", 200),
        (["instance:read"], "DELETE", "/instances/web", 403),
        (["instance:read"], "POST", "/instances/web/stop", 403),
        (["instance:read"], "GET", "/images", 403),
        (["instance:read"], "GET", "/capabilities", 200),
        (["instance:read"], "GET", "/nothing", 403),
        (["instance:delete"], "DELETE", "/instances/web", 404),
        (["instance:read", "instance:write"], "GET", "/snapshots", 403),
        (["instance:write"], "POST", "/instances/web/snapshots", 403),
        (["instance:write"], "POST", "/instances/web/snapshots/then/restore", 403),
        (["instance:read"], "GET", "/instances/web/snapshot-schedule", 403),
        (["instance:write"], "POST", "/instances/web/standby", 404),
        (["snapshot:write"], "POST", "/instances/web/standby", 403),
        (["snapshot:write"], "POST", "/instances/web/snapshots", 400),
        (["snapshot:write"], "POST", "/instances/web/snapshots/then/restore", 404),
        (["snapshot:write"], "POST", "/snapshots/then/fork", 400),
        (["snapshot:read"], "GET", "/snapshots", 200),
        (["snapshot:read"], "GET", "/snapshots/then/export", 404),
        (["snapshot:write"], "GET", "/snapshots/then/export", 403),
        (["snapshot:read"], "POST", "/snapshots/import", 403),
        (["snapshot:write"], "POST", "/snapshots/import", 400),
        (["snapshot:read"], "DELETE", "/snapshots/then", 403),
        (["snapshot:delete"], "DELETE", "/snapshots/then", 404),
        (["image:write"], "POST", "/images/import", 400),
        (["*"], "GET", "/nothing", 404),
        (["volume:read"], "GET", "/volumes", 200),
        (["volume:read"], "POST", "/volumes/from-archive", 403),
        (["volume:write"], "POST", "/volumes/from-archive", 400),
        (["volume:write"], "POST", "/instances/web/volumes/data", 403),
        (["instance:write"], "DELETE", "/instances/web/volumes/data", 404),
        (["instance:delete"], "DELETE", "/instances/web/volumes/data", 403),
        (["resource:write"], "POST", "/resources/memory/reclaim", 400),
        (["resource:read"], "POST", "/resources/memory/reclaim", 403),
        (["volume:write"], "DELETE", "/volumes/data", 403),
        (["volume:delete"], "DELETE", "/volumes/data", 404),
        (["bogus"], "GET", "/instances", 403),
    ],
)
def test_scopes_decide(served: Served, permissions: list[str], method: str, path: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {token(*permissions)}"}
    answer = httpx.request(method, served.url + path, headers=headers)
    assert answer.status_code == status


@pytest.mark.parametrize("permissions", [[], "*", {"*": 1}, None])
def test_permissions_that_are_no_list_of_scopes_allow_nothing(served: Served, permissions: object) -> None:
    claims = {"sub": "tester", "exp": time.time() + 60, "permissions": permissions}
    assert get(served, "/instances", jwt.encode(claims, SECRET, algorithm="HS256")).status_code == 403


def test_the_unix_socket_needs_no_token(served: Served) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(served.socket))) as client:
        assert client.get("http://localhost/instances").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {token('instance:read')}"}, 403),
        ({"Authorization": f"Bearer {token()}", "Origin": "https://example.org"}, 403),
        ({"Authorization": f"Bearer {token('instance:write')}"}, 404),
    ],
    ids=["no token", "may only read", "a browser", "let in"],
)
def test_exec_is_guarded_as_well(served: Served, headers: dict[str, str], status: int) -> None:
    url = served.url.replace("http", "ws") + "/instances/web/exec"
    with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=headers, proxy=None):
        pass
    assert refused.value.response.status_code == status


def test_a_short_secret_is_no_secret() -> None:
    with pytest.raises(WeakSecret):
        TokenAuth("short")


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(TokenAuth(SECRET))


def test_every_call_needs_a_scope_that_a_token_can_have() -> None:
    with closing(Api()) as api:
        called = [operation.label.split(" ", 1) for operation in api.operations()]
    assert len(called) > 50
    for method, path in called:
        assert scope_of("http", method, path) in {*SCOPES, None} - {EVERYTHING} or path == "/health"


def test_who_may_not_is_told_what_is_missing_in_a_field_of_its_own(served: Served) -> None:
    headers = {"Authorization": f"Bearer {token('instance:read')}"}
    refused = httpx.post(f"{served.url}/resources/memory/reclaim", json={}, headers=headers).json()
    assert (refused["code"], refused["fields"]) == ("forbidden", {"scope": "resource:write"})
    assert get(served, "/instances", None).json()["fields"] is None


def test_every_path_needs_a_scope_that_exists() -> None:
    for first in (
        "instances",
        "images",
        "volumes",
        "snapshots",
        "builds",
        "builders",
        "devices",
        "ingresses",
    ):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            assert scope_of("http", method, f"/{first}/x") in SCOPES
    assert scope_of("http", "GET", "/resources") in SCOPES
    assert scope_of("websocket", "GET", "/instances/x/exec") == "instance:write"
