"""Health checks on the wire, and what they have found."""

from typing import Final

from ramet.api.bounds import bounded_count, bounded_duration
from ramet.api.times import shown_time
from ramet.core.errors import Invalid
from ramet.core.health import (
    INTERVAL_S_MAX,
    INTERVAL_S_MIN,
    START_PERIOD_S_MAX,
    THRESHOLD_MAX,
    TIMEOUT_S_MAX,
    TIMEOUT_S_MIN,
    ExecProbe,
    Health,
    HealthCheck,
    HealthStatus,
    HttpProbe,
    Probe,
    TcpProbe,
)
from ramet.core.spec import InstanceRecord, State
from ramet.core.units import format_duration
from ramet.wire_api import supervision as wire

TYPES: Final = ("none", "http", "tcp", "exec")
SCHEMES: Final = ("http", "https")
COMMAND_BYTES_MAX: Final = 64 << 10
PATH_LENGTH_MAX: Final = 2048
_DEFAULTS: Final = HealthCheck("none", TcpProbe(0), 10.0, 2.0, 30.0, failure_threshold=3, success_threshold=1)
_PORT_MAX: Final = 65_535
_FIELD: Final = "health_check"
_NOBODY_ASKS: Final = wire.HealthStatus(HealthStatus.DISABLED.value, 0, 0)


def to_health_check(
    body: wire.HealthCheck | None,
    before: HealthCheck | None = None,
    *,
    has_network: bool,
    has_agent: bool = True,
) -> HealthCheck | None:
    """Return the check that a request gives; what it does not say is as `before`. None: none.

    Raises:
        Invalid: there is no such check, it can never succeed, or a time or number is out of bounds.
    """
    if body is None:
        return before
    kind = _kind(body, before)
    if kind == "none":
        return None
    if kind != "exec" and not has_network:
        raise _invalid("type", f"a check over {kind} needs a network", "use an exec check")
    if kind == "exec" and not has_agent:
        raise _invalid("type", "a check by exec needs the guest's agent", "use a check over http or tcp")
    base, at = before or _DEFAULTS, f"{_FIELD}."
    return HealthCheck(
        kind,
        _probe(kind, body, before),
        bounded_duration(f"{at}interval", body.interval, base.interval_s, INTERVAL_S_MIN, INTERVAL_S_MAX),
        bounded_duration(f"{at}timeout", body.timeout, base.timeout_s, TIMEOUT_S_MIN, TIMEOUT_S_MAX),
        bounded_duration(
            f"{at}start_period", body.start_period, base.start_period_s, 0.0, START_PERIOD_S_MAX
        ),
        bounded_count(
            f"{at}failure_threshold", body.failure_threshold, base.failure_threshold, 1, THRESHOLD_MAX
        ),
        bounded_count(
            f"{at}success_threshold", body.success_threshold, base.success_threshold, 1, THRESHOLD_MAX
        ),
    )


def _kind(body: wire.HealthCheck, before: HealthCheck | None) -> str:
    """Return the type that is asked for; where that is not said, the probe that is given tells."""
    given = [kind for kind in TYPES[1:] if getattr(body, kind) is not None]
    kind = body.type or (given[0] if given else "none" if before is None else before.kind)
    if kind not in TYPES:
        raise _invalid("type", f"{kind[:40]!r} is no type of health check", f"use one of {', '.join(TYPES)}")
    for other in given:
        if other != kind:
            raise _invalid(other, f"the check is of type {kind}, and {other} is given", f"leave out {other}")
    return kind


def _probe(kind: str, body: wire.HealthCheck, before: HealthCheck | None) -> Probe:
    if kind == "http" and body.http is not None:
        return _http(body.http)
    if kind == "tcp" and body.tcp is not None:
        return TcpProbe(_port("tcp.port", body.tcp.port))
    if kind == "exec" and body.exec is not None:
        return _exec(body.exec)
    if before is None or before.kind != kind:
        raise _invalid(kind, f"the check is of type {kind}, and {kind} is not given", f"give {kind}")
    return before.probe


def _http(body: wire.HttpCheck) -> HttpProbe:
    path, scheme = body.path or "/", body.scheme or "http"
    if (
        not path.startswith("/")
        or len(path) > PATH_LENGTH_MAX
        or not path.isascii()
        or not path.isprintable()
    ):
        raise _invalid("http.path", f"{path[:40]!r} is no path", "write it like /healthz, in printable ASCII")
    if " " in path:
        raise _invalid("http.path", f"{path[:40]!r} holds a space", "write it as %20")
    if scheme not in SCHEMES:
        raise _invalid("http.scheme", f"{scheme[:40]!r} is no scheme", f"use one of {', '.join(SCHEMES)}")
    status = bounded_count(f"{_FIELD}.http.expected_status", body.expected_status, 200, 100, 599)
    return HttpProbe(_port("http.port", body.port), path, scheme, status)


def _exec(body: wire.ExecCheck) -> ExecProbe:
    if not body.command or not body.command[0]:
        raise _invalid("exec.command", "the command is empty", "name a program")
    for name, words in (("command", body.command), ("working_dir", (body.working_dir or "",))):
        if any("\0" in word for word in words):
            raise _invalid(f"exec.{name}", "it holds a NUL character", "leave that out")
    if sum(len(word.encode()) + 1 for word in body.command) > COMMAND_BYTES_MAX:
        raise _invalid(
            "exec.command", f"the command is larger than {COMMAND_BYTES_MAX} bytes", "use a script"
        )
    return ExecProbe(body.command, body.working_dir or None)


def _port(name: str, port: int) -> int:
    return bounded_count(f"{_FIELD}.{name}", port, port, 1, _PORT_MAX)


def _invalid(name: str, text: str, remedy: str) -> Invalid:
    return Invalid(text, remedy=remedy, field=f"{_FIELD}.{name}")


def shown_health_check(check: HealthCheck | None) -> wire.HealthCheck | None:
    """Return a check as the API shows it."""
    if check is None:
        return None
    probe = check.probe
    return wire.HealthCheck(
        type=check.kind,
        http=wire.HttpCheck(probe.port, probe.path, probe.scheme, probe.expected_status)
        if isinstance(probe, HttpProbe)
        else None,
        tcp=wire.TcpCheck(probe.port) if isinstance(probe, TcpProbe) else None,
        exec=wire.ExecCheck(probe.argv, probe.cwd) if isinstance(probe, ExecProbe) else None,
        interval=format_duration(check.interval_s),
        timeout=format_duration(check.timeout_s),
        start_period=format_duration(check.start_period_s),
        failure_threshold=check.failure_threshold,
        success_threshold=check.success_threshold,
    )


def shown_health(record: InstanceRecord, found: Health | None) -> wire.HealthStatus:
    """Return how an instance does as the API shows it; what checks have `found` may be nothing yet."""
    if record.spec.health_check is None:
        return _NOBODY_ASKS
    status = record.health or HealthStatus.STARTING
    if record.state not in (State.RUNNING, State.INITIALIZING):
        status = HealthStatus.UNKNOWN
    if found is None:
        return wire.HealthStatus(status.value, 0, 0)
    return wire.HealthStatus(
        status=status.value,
        consecutive_successes=found.successes,
        consecutive_failures=found.failures,
        last_checked_at=shown_time(found.last_checked_at),
        last_success_at=shown_time(found.last_success_at),
        last_failure_at=shown_time(found.last_failure_at),
        last_error=found.last_error or None,
    )
