"""What is refused is refused in one form, names what is wrong, and says which request it was."""

import json
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import unix_connect

from tests.api.stand_in import Served

IMAGE = "docker.io/library/alpine:latest"
WEB = {"name": "web", "image": IMAGE}


@pytest.fixture
def http(served: Served, http: httpx.Client) -> httpx.Client:
    served.fleet.put("src")
    return http


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/instances", "GET, POST"),
        ("POST", "/instances/src", "DELETE, GET, PATCH"),
        ("PATCH", "/instances/src/snapshot-schedule", "DELETE, GET, PUT"),
        ("DELETE", "/health", "GET"),
    ],
)
def test_who_uses_a_wrong_method_hears_of_all_that_there_are(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    refused = http.request(method, path)
    assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == allowed


def test_a_body_that_is_missing_is_called_that(http: httpx.Client) -> None:
    refused = http.post("/instances")
    assert refused.status_code == 400
    (detail,) = refused.json()["details"]
    assert (detail["code"], detail["message"], detail["field"]) == (
        "missing_body",
        "The body is missing",
        None,
    )


@pytest.mark.parametrize("path", ["/instances/src/stat", "/instances/src/archive"])
def test_a_field_called_path_is_named(http: httpx.Client, path: str) -> None:
    (detail,) = http.get(path).json()["details"]
    assert (detail["code"], detail["field"]) == ("missing_field", "path")


def test_a_body_that_is_no_json_has_a_status_of_its_own(http: httpx.Client) -> None:
    refused = http.post("/instances", content=b"name=web", headers={"content-type": "text/plain"})
    assert (refused.status_code, refused.json()["code"]) == (415, "wrong_content_type")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/instances", {**WEB, "size": "big"}, "size"),
        ("/instances", {**WEB, "overlay_size": "big"}, "overlay_size"),
        ("/instances", {**WEB, "hotplug_size": "big"}, "hotplug_size"),
        ("/instances", {**WEB, "disk_io_bps": "fast"}, "disk_io_bps"),
        ("/instances", {**WEB, "ttl": "soon"}, "ttl"),
        (
            "/instances",
            {**WEB, "network": {"bandwidth_download": "fast"}},
            "network.bandwidth_download",
        ),
        (
            "/instances",
            {**WEB, "auto_standby": {"idle_timeout": "soon"}},
            "auto_standby.idle_timeout",
        ),
        ("/instances/src/standby", {"compression_delay": "soon"}, "compression_delay"),
        ("/resources/memory/reclaim", {"reclaim_bytes": 1, "hold_for": "soon"}, "hold_for"),
    ],
)
def test_what_cannot_be_read_names_its_field(
    http: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    refused = http.post(path, json=body)
    assert (refused.status_code, refused.json()["fields"]) == (400, {"field": field})
    assert refused.json()["message"].startswith(f"{field}: ")
    assert refused.json()["remedy"].startswith("write it like ")


def test_platforms_that_no_guest_could_be_of_are_not_pulled(http: httpx.Client) -> None:
    for platform in ("linux/riscv64", "windows/amd64", "linux"):
        refused = http.post("/images", json={"name": "debian:12", "platform": platform})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_platform")


def test_a_websocket_to_nowhere_is_refused_as_a_request_is(served: Served) -> None:
    with pytest.raises(InvalidStatus) as refused, unix_connect(str(served.socket), "ws://a/nothing"):
        pass
    response = refused.value.response
    assert (response.status_code, json.loads(response.body or b"")["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["exec", "exec/v1", "cp"])
def test_who_asks_for_a_websocket_as_for_a_page_hears_that_it_is_one(http: httpx.Client, path: str) -> None:
    refused = http.get(f"/instances/src/{path}")
    assert (refused.status_code, refused.json()["code"]) == (426, "upgrade_required")
    assert refused.headers["upgrade"] == "websocket"


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("exec", {"command": [], "streams": "separate"}),
        ("exec/v1", {"attach": "nothing"}),
        ("cp", {"direction": "from", "guest_path": "/nothing"}),
    ],
)
def test_what_fails_on_a_websocket_says_which_request_it_was(
    http: httpx.Client, served: Served, path: str, first: dict[str, Any]
) -> None:
    headers = {"X-Request-Id": "ours"}
    url = f"ws://a/instances/src/{path}"
    with unix_connect(str(served.socket), url, additional_headers=headers) as websocket:
        websocket.send(json.dumps(first))
        told = json.loads(websocket.recv())
    error = told if path == "cp" else told["error"]
    assert error["request_id"] == "ours"
    assert error["remedy"]
