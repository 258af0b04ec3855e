"""Snapshot schedules: what a request says of one, and what is shown."""

import json
from collections.abc import Iterator

import httpx
import hypeman
import pytest
from hypeman import Hypeman

from ramet.core.snapshot_schedule import Retention, SnapshotSchedule
from ramet.policies.schedule import PREFIX_DEFAULT
from tests.api.stand_in import Served, token
from tests.cli.conftest import Ramet, ramet

__all__ = ("ramet",)


@pytest.fixture
def client(served: Served) -> Iterator[Hypeman]:
    served.fleet.put("web")
    with Hypeman(base_url=served.url, api_key=token()) as client:
        yield client


def test_a_schedule_is_kept_and_shown(client: Hypeman, served: Served) -> None:
    made = client.instances.snapshot_schedule.update(
        "web",
        interval="90m",
        retention={"max_count": 5, "max_age": "168h"},
        metadata={"a": "b"},
        name_prefix="daily",
    )
    assert made == client.instances.snapshot_schedule.get("web")
    assert made.instance_id == served.fleet.get("web").record.id
    assert (made.interval, made.name_prefix, made.metadata) == ("1h30m", "daily", {"a": "b"})
    assert (made.retention.max_count, made.retention.max_age) == (5, "168h")
    kept = served.schedules.get("web").schedule
    assert kept == SnapshotSchedule(5400.0, Retention(5, 168 * 3600.0), "daily", {"a": "b"})
    client.instances.snapshot_schedule.delete("web")
    with pytest.raises(hypeman.NotFoundError):
        client.instances.snapshot_schedule.get("web")


def test_zero_is_no_bound_and_no_prefix_is_ours(client: Hypeman, served: Served) -> None:
    found = client.instances.snapshot_schedule.update(
        "web", interval="1m", retention={"max_count": 0, "max_age": "1h"}, name_prefix=""
    )
    assert (found.retention.max_count, found.retention.max_age, found.name_prefix) == (None, "1h", None)
    assert served.schedules.get("web").schedule.retention == Retention(None, 3600.0)
    assert len(PREFIX_DEFAULT) > 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"interval": "59s"}, "interval"),
        ({"interval": "9000h"}, "interval"),
        ({"retention": {}}, "retention"),
        ({"retention": {"max_count": 0, "max_age": "0"}}, "retention"),
        ({"retention": {"max_count": -1}}, "retention.max_count"),
        ({"retention": {"max_age": "1s"}}, "retention.max_age"),
        ({"name_prefix": "p" * 48}, "name_prefix"),
        ({"name_prefix": "Daily"}, "name_prefix"),
        ({"metadata": {"a!": "b"}}, "metadata"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(
    client: Hypeman, served: Served, change: dict[str, object], field: str
) -> None:
    asked = {"interval": "1h", "retention": {"max_count": 3}, **change}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(served.socket))) as http:
        answer = http.put("http://x/instances/web/snapshot-schedule", json=asked)
    assert (answer.status_code, answer.json()["fields"]["field"]) == (400, field)
    with pytest.raises(hypeman.NotFoundError):
        client.instances.snapshot_schedule.get("web")


def test_the_commands_set_show_and_remove_one(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    options = ("--interval", "6h", "--max-count", "4", "--name-prefix", "web", "--tag", "a=b")
    exit_code, out, err = ramet("snapshot", "schedule", "set", "web", *options)
    assert (exit_code, err) == (0, "")
    assert out.splitlines()[0].split() == ["every", "6h"]
    assert "the 4 newest" in out
    assert served.schedules.get("web").schedule == SnapshotSchedule(21600.0, Retention(4), "web", {"a": "b"})
    exit_code, out, _ = ramet("snapshot", "schedule", "show", "web", "--json")
    assert (exit_code, json.loads(out)["interval"]) == (0, "6h")
    assert ramet("snapshot", "schedule", "rm", "web")[:2] == (0, "web\n")
    failed = ramet("snapshot", "schedule", "show", "web")
    assert failed[0] == 1
    assert failed[2].splitlines()[0].endswith("[snapshot_schedule_not_found]")
