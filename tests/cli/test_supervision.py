"""Health checks and restarts on the command line."""

import json
from dataclasses import replace

import pytest

from ramet.core.health import ExecProbe, HealthCheck, HealthStatus, HttpProbe, TcpProbe
from ramet.core.restart import RestartPolicy, RestartWhen
from ramet.core.spec import State
from tests.api.stand_in import Served
from tests.cli.conftest import Ramet

IMAGE = "docker.io/library/alpine:latest"
ALWAYS = RestartPolicy(RestartWhen.ALWAYS, 5.0, 0, 600.0)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("no", replace(ALWAYS, when=RestartWhen.NEVER)),
        ("always", ALWAYS),
        ("unless-stopped", ALWAYS),
        ("on-failure", replace(ALWAYS, when=RestartWhen.ON_FAILURE)),
        ("on-failure:3", replace(ALWAYS, when=RestartWhen.ON_FAILURE, attempts_max=3)),
    ],
)
def test_restart_says_after_what_and_how_often(
    ramet: Ramet, served: Served, text: str, policy: RestartPolicy
) -> None:
    assert ramet("run", "--name", "web", "--restart", text, IMAGE)[0] == 0
    assert served.fleet.get("web").record.spec.restart_policy == policy


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (("--health-cmd", "test -e /x"), ("exec", ExecProbe(("/bin/sh", "-c", "test -e /x")))),
        (("--health-http", "8080"), ("http", HttpProbe(8080))),
        (("--health-http", "https:8443/up?all=1"), ("http", HttpProbe(8443, "/up?all=1", "https"))),
        (("--health-tcp", "22"), ("tcp", TcpProbe(22))),
    ],
)
def test_health_says_how_it_is_asked(
    ramet: Ramet, served: Served, options: tuple[str, str], check: tuple[str, HttpProbe]
) -> None:
    how = ("--health-interval", "5s", "--health-timeout", "1s", "--health-start-period", "1m")
    assert ramet("run", "--name", "web", *options, *how, "--health-retries", "4", IMAGE)[0] == 0
    assert served.fleet.get("web").record.spec.health_check == HealthCheck(*check, 5.0, 1.0, 60.0, 4, 1)


@pytest.mark.parametrize(
    "options",
    [
        ("--restart", "sometimes"),
        ("--restart", "always:3"),
        ("--restart", "on-failure:many"),
        ("--health-http", "web"),
        ("--health-http", "80x"),
        ("--health-tcp", "ssh"),
        ("--health-tcp", "22", "--health-cmd", "true"),
        ("--health-interval", "5s"),
    ],
)
def test_what_cannot_be_meant_is_a_mistake_of_usage(
    ramet: Ramet, served: Served, options: tuple[str, ...]
) -> None:
    assert ramet("run", *options, IMAGE)[0] == 2
    assert served.fleet.list() == []


def test_how_an_instance_does_is_shown(ramet: Ramet, served: Served) -> None:
    ramet("run", "--name", "web", "--health-tcp", "80", IMAGE)
    record = served.fleet.get("web").record
    assert "Running (starting)" in ramet("ps")[1]
    served.fleet._records[record.id] = replace(record, health=HealthStatus.UNHEALTHY)
    assert "Running (unhealthy)" in ramet("ps")[1]
    assert json.loads(ramet("inspect", "web")[1])["health_status"]["status"] == "unhealthy"
    served.fleet.set("web", State.STANDBY)
    assert "Standby " in ramet("ps", "-a")[1]
