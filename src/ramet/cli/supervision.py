"""Options of `ramet run` on health checks and restarts, spelled as Docker does where it has them."""

import functools
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from ramet.wire_api.supervision import ExecCheck, HealthCheck, HttpCheck, RestartPolicy, TcpCheck

F = TypeVar("F", bound=Callable[..., Any])

POLICIES: Final = {"no": "never", "always": "always", "unless-stopped": "always", "on-failure": "on_failure"}
_HTTP: Final = re.compile(r"(https?:)?(\d+)(/.*)?")


def supervision_options(function: F) -> F:
    """Add the options, as `health` and `restart`: parts of a request, None where nothing is said."""

    @functools.wraps(function)
    def gathered(*args: Any, **given: Any) -> Any:
        said = {name: given.pop(name) for name in _NAMES}
        return function(*args, health=_health(**said), **given)

    return _options(gathered)  # type: ignore[return-value]  # It takes what its options say.


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--restart",
                metavar="POLICY",
                callback=_restart,
                help="Start it again by itself: no, always, or on-failure[:ATTEMPTS].",
            ),
            click.option("--health-cmd", metavar="COMMAND", help="Ask it by a shell command in the guest."),
            click.option(
                "--health-http",
                metavar="[https:]PORT[/PATH]",
                callback=_http,
                help="Ask it by a request, which is to be answered with 200.",
            ),
            click.option(
                "--health-tcp",
                metavar="PORT",
                type=int,
                help="Ask it by a connection, which it is to accept.",
            ),
            click.option("--health-interval", metavar="DURATION", help="How often; every 10s without."),
            click.option("--health-timeout", metavar="DURATION", help="How long it may take; 2s without."),
            click.option(
                "--health-start-period",
                metavar="DURATION",
                help="How long after its start a failure does not count; 30s without.",
            ),
            click.option(
                "--health-retries",
                type=int,
                help="How many failures in a row make it unhealthy; 3 without.",
            ),
        )
    ):
        function = option(function)
    return function


_NAMES: Final = (
    "health_cmd",
    "health_http",
    "health_tcp",
    "health_interval",
    "health_timeout",
    "health_start_period",
    "health_retries",
)


def _health(
    health_cmd: str | None,
    health_http: HttpCheck | None,
    health_tcp: int | None,
    health_interval: str | None,
    health_timeout: str | None,
    health_start_period: str | None,
    health_retries: int | None,
) -> HealthCheck | None:
    probes = [each for each in (health_cmd, health_http, health_tcp) if each is not None]
    if len(probes) > 1:
        raise click.UsageError("--health-cmd, --health-http and --health-tcp exclude each other")
    how = (health_interval, health_timeout, health_start_period, health_retries)
    if not probes:
        if any(each is not None for each in how):
            raise click.UsageError("how it is asked needs one of --health-cmd, --health-http, --health-tcp")
        return None
    return HealthCheck(
        exec=None if health_cmd is None else ExecCheck(("/bin/sh", "-c", health_cmd)),
        http=health_http,
        tcp=None if health_tcp is None else TcpCheck(health_tcp),
        interval=health_interval,
        timeout=health_timeout,
        start_period=health_start_period,
        failure_threshold=health_retries,
    )


def _restart(_: click.Context, __: click.Parameter, text: str | None) -> RestartPolicy | None:
    if text is None:
        return None
    name, colon, attempts = text.partition(":")
    if name not in POLICIES or (colon and (name != "on-failure" or not attempts.isdecimal())):
        raise click.BadParameter(f"{text!r} is not no, always or on-failure[:ATTEMPTS]")
    return RestartPolicy(POLICIES[name], max_attempts=int(attempts) if colon else None)


def _http(_: click.Context, __: click.Parameter, text: str | None) -> HttpCheck | None:
    if text is None:
        return None
    found = _HTTP.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not PORT, PORT/PATH or https:PORT/PATH")
    scheme, port, path = found.groups()
    return HttpCheck(int(port), path, scheme.rstrip(":") if scheme else None)
