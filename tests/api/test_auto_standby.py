"""Instances that sleep by themselves: what a request says of it, and what is shown."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import hypeman
import pytest
from hypeman import Hypeman

from ramet.core.auto_standby import AutoStandby
from ramet.core.spec import State
from tests.api.stand_in import Served, token

IMAGE = "docker.io/library/alpine:latest"


@pytest.fixture
def client(served: Served) -> Iterator[Hypeman]:
    with Hypeman(base_url=served.url, api_key=token()) as client:
        yield client


def test_a_policy_is_kept_and_shown(client: Hypeman, served: Served) -> None:
    made = client.instances.create(
        name="web",
        image=IMAGE,
        auto_standby={
            "enabled": True,
            "idle_timeout": "5m",
            "ignore_source_cidrs": ["10.0.0.0/8"],
            "ignore_destination_ports": [22, 9100],
        },
    )
    shown = made.auto_standby
    assert shown is not None
    assert (shown.enabled, shown.idle_timeout) == (True, "5m")
    assert (shown.ignore_source_cidrs, shown.ignore_destination_ports) == (["10.0.0.0/8"], [22, 9100])
    kept = served.fleet.get("web").record.spec.auto_standby
    assert kept == AutoStandby(True, 300.0, ("10.0.0.0/8",), (22, 9100))


def test_a_policy_is_changed_where_something_is_said_of_it(client: Hypeman, served: Served) -> None:
    client.instances.create(name="web", image=IMAGE)
    assert client.instances.update("web").auto_standby is None
    client.instances.update(
        "web", auto_standby={"enabled": True, "idle_timeout": "1h", "ignore_destination_ports": [22]}
    )
    assert served.fleet.get("web").record.spec.auto_standby == AutoStandby(True, 3600.0, (), (22,))
    off = client.instances.update("web", auto_standby={"enabled": False}).auto_standby
    assert off is not None
    assert (off.enabled, off.idle_timeout, off.ignore_destination_ports) == (False, "1h", [22])
    none = client.instances.update("web", auto_standby={"ignore_destination_ports": []}).auto_standby
    assert none is not None
    assert none.ignore_destination_ports == []
    with pytest.raises(hypeman.NotFoundError):
        client.instances.update("nobody", auto_standby={"enabled": True})


def test_without_a_time_it_is_five_minutes_and_without_a_word_it_is_off(client: Hypeman) -> None:
    on = client.instances.create(name="on", image=IMAGE, auto_standby={"enabled": True}).auto_standby
    off = client.instances.create(name="off", image=IMAGE, auto_standby={}).auto_standby
    assert on is not None
    assert off is not None
    assert (on.enabled, on.idle_timeout, off.enabled) == (True, "5m", False)
    assert client.instances.create(name="none", image=IMAGE).auto_standby is None


def test_the_status_tells_when_it_will_sleep(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE, auto_standby={"enabled": True, "idle_timeout": "10m"})
    found = client.instances.auto_standby.status("web")
    assert (found.supported, found.configured, found.enabled, found.eligible) == (True, True, True, True)
    assert (found.status, found.reason) == ("idle_countdown", "idle_timeout_not_elapsed")
    assert (found.active_inbound_connections, found.idle_timeout) == (0, "10m")
    assert found.tracking_mode == "conntrack_events_v4_tcp"
    assert found.idle_since is not None
    assert found.next_standby_at == found.idle_since + timedelta(minutes=10)
    assert found.countdown_remaining is not None
    assert found.countdown_remaining.startswith(("9m", "10m"))


def test_an_instance_without_a_policy_has_a_status_too(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE)
    found = client.instances.auto_standby.status("web")
    assert (found.configured, found.eligible, found.status) == (False, False, "disabled")
    assert (found.reason, found.next_standby_at) == ("policy_missing", None)
    assert client.instances.auto_standby.hold("web").status == "disabled"
    for call in (client.instances.auto_standby.status, client.instances.auto_standby.hold):
        with pytest.raises(hypeman.NotFoundError):
            call("nobody")


def test_traffic_is_to_wake_it_where_it_says_so(client: Hypeman, http: httpx.Client, served: Served) -> None:
    asked = {"enabled": True, "wake_on_traffic": True}
    client.instances.create(name="web", image=IMAGE, extra_body={"auto_standby": asked})
    kept = served.fleet.get("web").record.spec.auto_standby
    assert kept == AutoStandby(True, 300.0, wakes_on_traffic=True)
    assert http.get("/instances/web").json()["auto_standby"]["wake_on_traffic"] is True
    client.instances.update("web", auto_standby={"idle_timeout": "1h"})
    assert http.get("/instances/web").json()["auto_standby"]["wake_on_traffic"] is True
    http.patch("/instances/web", json={"auto_standby": {"wake_on_traffic": False}})
    assert http.get("/instances/web").json()["auto_standby"]["wake_on_traffic"] is False
    status = http.get("/instances/web/auto-standby/status").json()
    assert (status["wake_on_traffic"], status["wake_armed"]) == (False, False)


def test_a_hold_says_until_when(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE, auto_standby={"enabled": True, "idle_timeout": "1h"})
    held = client.instances.auto_standby.hold("web").hold_until
    assert held is not None
    assert timedelta(minutes=59) < held - datetime.now(UTC) <= timedelta(hours=1)


def test_what_sleeps_cannot_be_held(client: Hypeman, served: Served) -> None:
    client.instances.create(name="web", image=IMAGE, auto_standby={"enabled": True})
    served.fleet.set("web", State.STANDBY)
    with pytest.raises(hypeman.ConflictError) as refused:
        client.instances.auto_standby.hold("web")
    assert refused.value.response.json()["code"] == "instance_in_standby"
    assert client.instances.auto_standby.status("web").reason == "instance_not_running"


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"idle_timeout": "0s"}, "idle_timeout"),
        ({"idle_timeout": "900ms"}, "idle_timeout"),
        ({"idle_timeout": "9000h"}, "idle_timeout"),
        ({"ignore_source_cidrs": ["10.0.0.1/8"]}, "ignore_source_cidrs"),
        ({"ignore_source_cidrs": ["fe80::/64"]}, "ignore_source_cidrs"),
        ({"ignore_source_cidrs": [""]}, "ignore_source_cidrs"),
        ({"ignore_source_cidrs": ["10.0.0.0/8"] * 101}, "ignore_source_cidrs"),
        ({"ignore_destination_ports": [0]}, "ignore_destination_ports"),
        ({"ignore_destination_ports": [65_536]}, "ignore_destination_ports"),
        ({"ignore_destination_ports": [80] * 101}, "ignore_destination_ports"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused(
    http: httpx.Client, served: Served, policy: dict[str, Any], field: str
) -> None:
    asked = {"name": "web", "image": IMAGE, "auto_standby": {"enabled": True, **policy}}
    answer = http.post("/instances", json=asked)
    assert answer.status_code == 400
    assert answer.json()["fields"]["field"] == f"auto_standby.{field}"
    assert served.fleet.list() == []


@pytest.mark.parametrize(
    "policy",
    [{"enabled": "perhaps"}, {"idle_timeout": 5}, {"idle_timeout": "soon"}, {"ports": [1]}, [], "5m"],
)
def test_what_is_no_policy_is_refused(http: httpx.Client, policy: object) -> None:
    answer = http.post("/instances", json={"name": "web", "image": IMAGE, "auto_standby": policy})
    assert answer.status_code == 400
