"""When instances are to be removed: what a request says of it, and what is shown."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from ramet.core.spec import State
from tests.api.stand_in import Served

IMAGE = "docker.io/library/alpine:latest"


def create(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/instances", json={"name": "web", "image": IMAGE, **fields})


def test_a_lifetime_counts_from_now(http: httpx.Client) -> None:
    shown = create(http, ttl="1h30m").json()["expires_at"]
    left = datetime.fromisoformat(shown) - datetime.now(UTC)
    assert timedelta(minutes=89) < left <= timedelta(minutes=90)
    assert http.get("/instances/web").json()["expires_at"] == shown


def test_a_moment_is_kept(http: httpx.Client, served: Served) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    assert create(http, expires_at=moment.isoformat()).status_code == 201
    assert served.fleet.get("web").record.spec.expires_at == moment.timestamp()


@pytest.mark.parametrize("fields", [{}, {"ttl": "0s"}, {"ttl": None, "expires_at": None}])
def test_without_either_it_stays(http: httpx.Client, fields: dict[str, Any]) -> None:
    assert create(http, **fields).json()["expires_at"] is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"ttl": "1h", "expires_at": "2999-01-01T00:00:00Z"}, "ttl"),
        ({"ttl": "100000h"}, "ttl"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2999-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": ""}, "expires_at"),
    ],
)
def test_what_is_no_time_to_come_is_refused(
    http: httpx.Client, served: Served, fields: dict[str, Any], field: str
) -> None:
    refused = create(http, **fields)
    assert (refused.status_code, refused.json()["fields"]["field"]) == (400, field)
    assert served.fleet.list() == []
    assert create(http).status_code == 201
    changed = http.patch("/instances/web", json=fields)
    assert (changed.status_code, changed.json()["fields"]["field"]) == (400, field)


def test_it_is_changed_as_often_as_one_likes_until_it_is_up(http: httpx.Client, served: Served) -> None:
    create(http, ttl="1h")
    longer = http.patch("/instances/web", json={"ttl": "2h"}).json()["expires_at"]
    assert datetime.fromisoformat(longer) > datetime.now(UTC) + timedelta(minutes=61)
    assert http.patch("/instances/web", json={}).json()["expires_at"] == longer
    assert http.patch("/instances/web", json={"ttl": "0s"}).json()["expires_at"] is None
    record = served.fleet.get("web").record
    served.fleet._records[record.id] = replace(record, spec=replace(record.spec, expires_at=time.time() - 1))
    late = http.patch("/instances/web", json={"ttl": "2h"})
    assert (late.status_code, late.json()["code"]) == (409, "invalid_state")
    assert served.fleet.get("web").record.state is State.RUNNING


def test_what_else_could_be_changed_is_refused_by_name(http: httpx.Client) -> None:
    http.post("/instances", json={"name": "web", "image": IMAGE}).raise_for_status()
    nothing = {"env": {}, "health_check": {"type": "none"}}
    assert http.patch("/instances/web", json=nothing).status_code == 200
    refused = http.patch("/instances/web", json={"env": {"KEY": "value"}, "auto_standby": {"enabled": True}})
    assert (refused.status_code, refused.json()["fields"]["field"]) == (501, "env")
    assert http.get("/instances/web").json()["auto_standby"] is None
    assert http.patch("/instances/web", json={"name": "other"}).status_code == 400
