"""Health checks, restart policies and phases: what a request says of them, and what is shown."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypeman import Hypeman

from ramet.core.health import ExecProbe, HealthCheck, HealthStatus, HttpProbe, TcpProbe
from ramet.core.phases import Phases
from ramet.core.restart import RestartPolicy, Restarts, RestartWhen, RunEnd
from ramet.core.spec import InstanceRecord, State
from tests.api.stand_in import Served, token

IMAGE = "docker.io/library/alpine:latest"


@pytest.fixture
def client(served: Served) -> Iterator[Hypeman]:
    with Hypeman(base_url=served.url, api_key=token()) as client:
        yield client


def check_of(served: Served) -> HealthCheck | None:
    return served.fleet.get("web").record.spec.health_check


def change(served: Served, **changes: Any) -> InstanceRecord:
    record = replace(served.fleet.get("web").record, **changes)
    served.fleet._records[record.id] = record
    return record


def test_a_check_is_kept_and_shown_with_what_was_not_said(client: Hypeman, served: Served) -> None:
    made = client.instances.create(
        name="web", image=IMAGE, health_check={"type": "http", "http": {"port": 80, "path": "/up"}}
    )
    assert check_of(served) == HealthCheck("http", HttpProbe(80, "/up"), 10.0, 2.0, 30.0, 3, 1)
    shown = made.health_check
    assert shown is not None
    assert shown.http is not None
    assert (shown.type, shown.tcp, shown.exec) == ("http", None, None)
    assert (shown.http.port, shown.http.path, shown.http.scheme, shown.http.expected_status) == (
        80,
        "/up",
        "http",
        200,
    )
    assert (shown.interval, shown.timeout, shown.start_period) == ("10s", "2s", "30s")
    assert (shown.failure_threshold, shown.success_threshold) == (3, 1)


def test_a_check_is_changed_where_something_is_said_of_it(client: Hypeman, served: Served) -> None:
    client.instances.create(name="web", image=IMAGE)
    client.instances.update("web", health_check={"exec": {"command": ["true"], "working_dir": "/srv"}})
    assert check_of(served) == HealthCheck("exec", ExecProbe(("true",), "/srv"), 10.0, 2.0, 30.0, 3, 1)
    client.instances.update("web", health_check={"interval": "1m", "failure_threshold": 5})
    assert check_of(served) == HealthCheck("exec", ExecProbe(("true",), "/srv"), 60.0, 2.0, 30.0, 5, 1)
    client.instances.update("web", health_check={"type": "tcp", "tcp": {"port": 22}})
    assert check_of(served) == HealthCheck("tcp", TcpProbe(22), 60.0, 2.0, 30.0, 5, 1)
    assert client.instances.update("web", ttl="0s").health_check is not None
    none = client.instances.update("web", health_check={"type": "none"})
    assert none.health_status is not None
    assert (none.health_check, none.health_status.status, check_of(served)) == (None, "disabled", None)


@pytest.mark.parametrize(
    ("check", "field"),
    [
        ({"type": "ping"}, "type"),
        ({"type": "tcp"}, "tcp"),
        ({"interval": "5s", "type": "exec"}, "exec"),
        ({"type": "tcp", "tcp": {"port": 80}, "http": {"port": 80}}, "http"),
        ({"tcp": {"port": 80}, "exec": {"command": ["true"]}}, "exec"),
        ({"type": "none", "tcp": {"port": 80}}, "tcp"),
        ({"tcp": {"port": 0}}, "tcp.port"),
        ({"tcp": {"port": 65_536}}, "tcp.port"),
        ({"http": {"port": -1}}, "http.port"),
        ({"http": {"port": 80, "path": "up"}}, "http.path"),
        ({"http": {"port": 80, "path": "/a b"}}, "http.path"),
        ({"http": {"port": 80, "path": "/\r\nX: y"}}, "http.path"),
        ({"http": {"port": 80, "path": "/é"}}, "http.path"),
        ({"http": {"port": 80, "path": "/" + "x" * 9999}}, "http.path"),
        ({"http": {"port": 80, "scheme": "ftp"}}, "http.scheme"),
        ({"http": {"port": 80, "expected_status": 99}}, "http.expected_status"),
        ({"http": {"port": 80, "expected_status": 600}}, "http.expected_status"),
        ({"exec": {"command": []}}, "exec.command"),
        ({"exec": {"command": [""]}}, "exec.command"),
        ({"exec": {"command": ["a\0b"]}}, "exec.command"),
        ({"exec": {"command": ["true"], "working_dir": "\0"}}, "exec.working_dir"),
        ({"exec": {"command": ["x" * 70_000]}}, "exec.command"),
        ({"tcp": {"port": 80}, "interval": "0.9s"}, "interval"),
        ({"tcp": {"port": 80}, "interval": "25h"}, "interval"),
        ({"tcp": {"port": 80}, "interval": "often"}, "interval"),
        ({"tcp": {"port": 80}, "timeout": "99ms"}, "timeout"),
        ({"tcp": {"port": 80}, "timeout": "61s"}, "timeout"),
        ({"tcp": {"port": 80}, "start_period": "25h"}, "start_period"),
        ({"tcp": {"port": 80}, "failure_threshold": 0}, "failure_threshold"),
        ({"tcp": {"port": 80}, "failure_threshold": 1001}, "failure_threshold"),
        ({"tcp": {"port": 80}, "success_threshold": 0}, "success_threshold"),
    ],
)
def test_a_check_that_can_never_be_is_refused_by_name(
    http: httpx.Client, served: Served, check: dict[str, Any], field: str
) -> None:
    answer = http.post("/instances", json={"name": "web", "image": IMAGE, "health_check": check})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.json()["fields"]["field"] == f"health_check.{field}"
    assert answer.json()["remedy"]
    assert served.fleet.list() == []


@pytest.mark.parametrize(
    "check",
    [
        {"later": 1},
        {"tcp": {"port": "http"}},
        {"tcp": {}},
        {"tcp": 80},
        {"http": {"port": 80, "later": 1}},
        {"exec": {"command": "true"}},
        {"type": 7},
        {"interval": 5},
        {"failure_threshold": "three"},
    ],
)
def test_a_check_of_another_shape_is_refused(http: httpx.Client, check: dict[str, Any]) -> None:
    answer = http.post("/instances", json={"name": "web", "image": IMAGE, "health_check": check})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_what_has_no_network_can_only_be_asked_by_a_command(http: httpx.Client) -> None:
    alone = {"name": "web", "image": IMAGE, "network": {"enabled": False}}
    refused = http.post("/instances", json={**alone, "health_check": {"tcp": {"port": 80}}})
    assert (refused.status_code, refused.json()["fields"]["field"]) == (400, "health_check.type")
    check = {"health_check": {"exec": {"command": ["true"]}}}
    assert http.post("/instances", json={**alone, **check}).status_code == 201
    assert http.patch("/instances/web", json={"health_check": {"http": {"port": 80}}}).status_code == 400


def test_how_an_instance_does_is_shown(client: Hypeman, served: Served) -> None:
    client.instances.create(name="web", image=IMAGE, health_check={"tcp": {"port": 80}})

    def status() -> str | None:
        found = client.instances.get("web").health_status
        return None if found is None else found.status

    assert status() == "starting"
    change(served, health=HealthStatus.UNHEALTHY)
    assert status() == "unhealthy"
    change(served, state=State.STANDBY)
    assert status() == "unknown"
    change(served, state=State.STOPPED)
    assert status() == "unknown"


def test_a_restart_policy_is_kept_changed_and_shown(client: Hypeman, served: Served) -> None:
    made = client.instances.create(name="web", image=IMAGE, restart_policy={"policy": "on_failure"})
    shown = made.restart_policy
    assert shown is not None
    assert (shown.policy, shown.backoff, shown.max_attempts, shown.stable_after) == (
        "on_failure",
        "5s",
        0,
        "10m",
    )
    client.instances.update("web", restart_policy={"backoff": "1m", "max_attempts": 3})
    kept = served.fleet.get("web").record.spec.restart_policy
    assert kept == RestartPolicy(RestartWhen.ON_FAILURE, 60.0, 3, 600.0)
    assert client.instances.create(name="none", image=IMAGE).restart_policy is None
    never = client.instances.create(name="never", image=IMAGE, restart_policy={}).restart_policy
    assert never is not None
    assert never.policy == "never"


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"policy": "sometimes"}, "policy"),
        ({"backoff": "99ms"}, "backoff"),
        ({"backoff": "25h"}, "backoff"),
        ({"backoff": "soon"}, "backoff"),
        ({"max_attempts": -1}, "max_attempts"),
        ({"max_attempts": 1_000_001}, "max_attempts"),
        ({"stable_after": "-1s"}, "stable_after"),
        ({"stable_after": "9000h"}, "stable_after"),
    ],
)
def test_a_restart_policy_that_can_never_be_is_refused_by_name(
    http: httpx.Client, policy: dict[str, Any], field: str
) -> None:
    http.post("/instances", json={"name": "there", "image": IMAGE}).raise_for_status()
    for answer in (
        http.post("/instances", json={"name": "web", "image": IMAGE, "restart_policy": policy}),
        http.patch("/instances/there", json={"restart_policy": policy}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert answer.json()["fields"]["field"] == f"restart_policy.{field}"


@pytest.mark.parametrize("policy", [{"later": 1}, {"policy": 7}, {"max_attempts": "three"}, {"backoff": 5}])
def test_a_restart_policy_of_another_shape_is_refused(http: httpx.Client, policy: dict[str, Any]) -> None:
    answer = http.post("/instances", json={"name": "web", "image": IMAGE, "restart_policy": policy})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_what_came_of_a_policy_is_shown(client: Hypeman, served: Served) -> None:
    policy = {"policy": "always", "backoff": "2m", "max_attempts": 2}
    client.instances.create(name="web", image=IMAGE, restart_policy=policy)  # type: ignore[arg-type]
    now = time.time()
    restarts = Restarts(1, now - 9, RunEnd.ITSELF, is_failing_health=True)
    change(served, state=State.STOPPED, started_at=now - 5, stopped_at=now, restarts=restarts)
    found = client.instances.get("web").restart_status
    assert found is not None
    assert found.last_attempt_at is not None
    assert found.next_attempt_at is not None
    assert (found.attempts, found.blocked_reason, found.last_reason) == (1, None, "health_check_failed")
    assert abs(found.next_attempt_at.timestamp() - now - 240) < 0.01
    change(served, restarts=replace(restarts, attempts=2))
    blocked = client.instances.get("web").restart_status
    assert blocked is not None
    assert (blocked.next_attempt_at, blocked.blocked_reason) == (None, "max_attempts_exceeded")
    change(served, restarts=Restarts(end=RunEnd.REQUEST))
    stopped = client.instances.get("web").restart_status
    assert stopped is not None
    assert (stopped.attempts, stopped.blocked_reason) == (0, "manual_stop")


def test_phases_are_shown_with_the_time_in_the_one_that_lasts(client: Hypeman, served: Served) -> None:
    client.instances.create(name="web", image=IMAGE)
    assert client.instances.get("web").current_phase == "running"
    since = time.time() - 10
    change(served, phases=Phases("Running", since, {"Created": 7, "Running": 500}))
    found = client.instances.get("web")
    assert found.phase_durations_ms is not None
    assert found.current_phase_since is not None
    assert found.phase_durations_ms.keys() == {"created", "running"}
    assert found.phase_durations_ms["created"] == 7
    assert 10_500 <= found.phase_durations_ms["running"] < 70_000
    assert abs(found.current_phase_since.timestamp() - since) < 0.01
