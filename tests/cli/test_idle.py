"""Instances that sleep by themselves, on the command line; and what instances use."""

import json

import pytest

from ramet.core.auto_standby import AutoStandby
from ramet.core.spec import State
from tests.api.stand_in import Served
from tests.cli.conftest import Ramet

IMAGE = "docker.io/library/alpine:latest"


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ((), None),
        (("--auto-standby", "10m"), AutoStandby(True, 600.0)),
        (("--auto-standby", "10m", "--wake-on-traffic"), AutoStandby(True, 600.0, wakes_on_traffic=True)),
        (("--wake-on-traffic",), AutoStandby(False, 300.0, wakes_on_traffic=True)),
    ],
)
def test_run_says_when_it_sleeps_and_what_wakes_it(
    ramet: Ramet, served: Served, options: tuple[str, ...], policy: AutoStandby | None
) -> None:
    assert ramet("run", "--name", "web", *options, IMAGE)[0] == 0
    assert served.fleet.get("web").record.spec.auto_standby == policy


def test_how_it_stands_is_shown(ramet: Ramet) -> None:
    ramet("run", "--name", "web", "--auto-standby", "10m", IMAGE)
    exit_code, out, _ = ramet("auto-standby", "show", "web")
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    found = {key: value.strip() for key, value in lines.items()}
    assert exit_code == 0
    assert found["status"] == "idle_countdown (idle_timeout_not_elapsed)"
    assert (found["idle time-out"], found["traffic wakes"], found["held until"]) == ("10m", "no", "-")
    raw = json.loads(ramet("auto-standby", "show", "--json", "web")[1])
    assert (raw["idle_timeout"], raw["wake_armed"]) == ("10m", False)


def test_it_is_held_unless_it_sleeps(ramet: Ramet, served: Served) -> None:
    ramet("run", "--name", "web", "--auto-standby", "10m", IMAGE)
    exit_code, out, _ = ramet("auto-standby", "hold", "--json", "web")
    assert exit_code == 0
    assert json.loads(out)["hold_until"] is not None
    served.fleet.set("web", State.STANDBY)
    exit_code, _, err = ramet("auto-standby", "hold", "web")
    assert exit_code == 1
    assert "restore it" in err


def test_what_an_instance_uses_is_shown(ramet: Ramet) -> None:
    ramet("run", "--name", "web", "--memory", "512MB", "--cpus", "3", IMAGE)
    exit_code, out, _ = ramet("stats", "web")
    assert exit_code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["cpu", "memory", "received", "sent"]
    assert "3 vCPUs" in out
    raw = json.loads(ramet("stats", "--json", "web")[1])
    assert (raw["instance_name"], raw["allocated_memory_bytes"]) == ("web", 512 << 20)
