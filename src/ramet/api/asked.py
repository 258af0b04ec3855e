"""From the wire to the domain: requests are parsed here, once, and nobody below asks again.

A field of the official client that we do not honour yet is refused with its name, unless it asks for what is
so anyway: an option switched off is no option.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Final

from fastapi import Request

from ramet.api.auto_standby import to_auto_standby
from ramet.api.bounds import about
from ramet.api.disk_io import to_disk_io
from ramet.api.expiry import is_said, to_expiry
from ramet.api.facts import HostFacts
from ramet.api.health import to_health_check
from ramet.api.hypervisors import demand_hotplug, to_hypervisor
from ramet.api.restart import to_restart_policy
from ramet.core.compression import (
    COMPRESSION_DELAY_S_MAX,
    NOT_SAID,
    Compression,
    CompressionAsk,
)
from ramet.core.errors import Invalid, Unsupported
from ramet.core.health import HealthCheck
from ramet.core.ids import NAME_LENGTH_MAX, is_name
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import (
    FORK_POOL_MAX,
    HOTPLUG_STEP_BYTES,
    MEMORY_BYTES_MIN,
    OVERLAY_BYTES_MIN,
    RATE_BYTES_PER_S_MAX,
    RATE_BYTES_PER_S_MIN,
    InstanceRecord,
    InstanceSpec,
    SpecChanges,
    State,
)
from ramet.core.units import format_rate, format_size, parse_duration, parse_rate, parse_size
from ramet.images import Image, Platform, parse_platform
from ramet.instance.fleet_types import (
    ExecCommand,
    WindowSize,
    WrongState,
)
from ramet.wire_api import instances as wire
from ramet.wire_api.compression import SnapshotCompression, SnapshotPolicy
from ramet.wire_api.exec import ExecStart

MIB: Final = 1 << 20
VCPU_COUNT_DEFAULT: Final = 2
MEMORY_BYTES_DEFAULT: Final = 1 << 30
OVERLAY_BYTES_DEFAULT: Final = 10 << 30
TAG_COUNT_MAX: Final = 50
TAG_VALUE_LENGTH_MAX: Final = 256
ENVIRONMENT_BYTES_MAX: Final = 128 << 10  # Of env and of argv, each; the kernel's limit for one string.
WAIT_S_DEFAULT: Final = 60.0
EXEC_TIMEOUT_S_MAX: Final = 1e9  # 30 years; the guest takes more for none.
TEXT_LENGTH_MAX: Final = 4096  # PATH_MAX
WINDOW_ROWS_DEFAULT: Final = 24
WINDOW_COLS_DEFAULT: Final = 80
TARGETS: Final = (State.RUNNING, State.STANDBY, State.STOPPED)

_TAG_KEY: Final = re.compile(r"[A-Za-z0-9 _.:/=+@-]{1,128}")
_PLATFORM: Final = re.compile(r"linux/(amd64|arm64)(/v[0-9]+)?")


class InvalidName(Invalid):
    """The text cannot name an instance."""

    code = "invalid_name"


class InvalidPlatform(Invalid):
    """The text is no platform that images are made for."""

    code = "invalid_platform"


def _is_falsy(value: object) -> bool:
    return not value


def _is_disabled(value: object) -> bool:
    return isinstance(value, Mapping) and not value.get("enabled")


_UNSUPPORTED_CREATE: Final[Mapping[str, Callable[[object], bool]]] = {
    "credentials": _is_falsy,
    "devices": _is_falsy,
    "gpu": _is_falsy,
}
"""Fields we know and do not honour, each with what tells that its value asks for nothing."""

_UNSUPPORTED_UPDATE: Final = {
    "env": _is_falsy,
}

_UNSUPPORTED_NETWORK: Final[Mapping[str, Callable[[object], bool]]] = {
    "egress": _is_disabled,
}


def check_name(name: str, of: str = "an instance") -> None:
    """Raise InvalidName unless `name` may name an instance, or what `of` says."""
    if not is_name(name):
        raise InvalidName(
            f"{name[: NAME_LENGTH_MAX + 1]!r} cannot be the name of {of}",
            remedy=f"use 1 to {NAME_LENGTH_MAX} lowercase letters, digits and inner dashes",
        )


def check_create(body: wire.CreateInstance, facts: HostFacts) -> None:
    """Check all of `body` that does not depend on the image.

    Raises:
        Invalid: it can never be made.
        Unsupported: it asks for something this server cannot do yet; the error names it.
    """
    check_name(body.name)
    _refuse(body, _UNSUPPORTED_CREATE, "")
    if body.network is not None:
        _refuse(body.network, _UNSUPPORTED_NETWORK, "network.")
    _check_platform(body.platform, facts)
    _hotplug_bytes(body, facts)
    to_disk_io(body, facts)
    check_tags(body.tags or {})
    _policy(body.snapshot_policy)
    to_auto_standby(body.auto_standby)
    _created_check(body)
    to_restart_policy(body.restart_policy)
    to_expiry(body.ttl, body.expires_at, time.time())


def check_update(body: wire.UpdateInstance) -> None:
    """Raise Unsupported, naming it, if `body` asks for something this server cannot do yet."""
    _refuse(body, _UNSUPPORTED_UPDATE, "")


def to_changes(body: wire.UpdateInstance, record: InstanceRecord) -> SpecChanges:
    """Return what of the spec of `record` is to be another.

    Raises:
        Invalid: something can never be so.
        WrongState: the instance's time is up.
    """
    changes, now = SpecChanges(), time.time()
    if body.auto_standby is not None:
        changes["auto_standby"] = to_auto_standby(body.auto_standby, record.spec.auto_standby)
    if body.health_check is not None:
        changes["health_check"] = to_health_check(
            body.health_check,
            record.spec.health_check,
            has_network=record.spec.has_network,
            has_agent=not record.spec.skip_guest_agent,
        )
    if body.restart_policy is not None:
        changes["restart_policy"] = to_restart_policy(body.restart_policy, record.spec.restart_policy)
    if is_said(body.ttl, body.expires_at):
        changes["expires_at"] = to_expiry(body.ttl, body.expires_at, now)
    if record.spec.expires_at is not None and record.spec.expires_at <= now:
        raise WrongState(f"the time of instance {record.name} is up", state=record.state)
    return changes


def to_overlay_bytes(field: str, text: str, facts: HostFacts) -> int:
    """Return the size of an overlay, in bytes.

    Raises:
        Invalid: it is none, or out of bounds.
    """
    return _size(field, text, 0, OVERLAY_BYTES_MIN, facts.limits.overlay_bytes)


def to_spec(body: wire.CreateInstance, image: Image, facts: HostFacts) -> InstanceSpec:
    """Return what `body`, checked by `check_create`, asks for.

    Raises:
        Invalid: a size or rate is none or out of bounds, or there is nothing to run.
    """
    argv = (*(body.entrypoint or ()), *(body.cmd or ()))
    network = body.network or wire.CreateNetwork()
    if not argv and not image.config.command:
        raise Invalid(
            f"The image {image.name} names no command and neither does the request",
            remedy="give one in cmd or entrypoint",
        )
    most = facts.limits
    vcpu_count = min(VCPU_COUNT_DEFAULT, most.vcpu_count) if body.vcpus is None else body.vcpus
    if not 1 <= vcpu_count <= most.vcpu_count:
        raise Invalid(f"vcpus is {vcpu_count}, and must be from 1 to {most.vcpu_count}", field="vcpus")
    return InstanceSpec(
        image=image.name,
        image_digest=image.digest,
        hypervisor=to_hypervisor(body.hypervisor, facts),
        vcpu_count=vcpu_count,
        memory_bytes=_memory_bytes(body, facts),
        overlay_bytes=_size(
            "overlay_size", body.overlay_size, OVERLAY_BYTES_DEFAULT, OVERLAY_BYTES_MIN, most.overlay_bytes
        ),
        env=_env(body.env),
        entrypoint=_argv("entrypoint", body.entrypoint),
        cmd=_argv("cmd", body.cmd),
        has_network=_has_network(body.network),
        tags=dict(body.tags or {}),
        download_bytes_per_s=_rate("bandwidth_download", network.bandwidth_download, network),
        upload_bytes_per_s=_rate("bandwidth_upload", network.bandwidth_upload, network),
        fork_pool=to_pool_size(body.fork_pool or 0, "fork_pool"),
        compression=_policy(body.snapshot_policy),
        auto_standby=to_auto_standby(body.auto_standby),
        health_check=_created_check(body),
        restart_policy=to_restart_policy(body.restart_policy),
        expires_at=to_expiry(body.ttl, body.expires_at, time.time()),
        hotplug_bytes=_hotplug_bytes(body, facts),
        disk_io_bytes_per_s=to_disk_io(body, facts),
        skip_guest_agent=bool(body.skip_guest_agent),
    )


def _created_check(body: wire.CreateInstance) -> HealthCheck | None:
    return to_health_check(
        body.health_check,
        has_network=_has_network(body.network),
        has_agent=not body.skip_guest_agent,
    )


def _has_network(network: wire.CreateNetwork | None) -> bool:
    return network is None or network.enabled is not False


def to_pool_size(size: int, field: str = "size") -> int:
    """Return how many children are to be made ahead.

    Raises:
        Invalid: fewer than none, or more than there are endpoints.
    """
    if not 0 <= size <= FORK_POOL_MAX:
        raise Invalid(f"{field} is {size}, and must be from 0 to {FORK_POOL_MAX}", field=field)
    return size


def to_exec_command(start: ExecStart) -> ExecCommand:
    """Return the command that the first message of an exec session asks for.

    Raises:
        Invalid: there is no command, a number is negative, or no terminal has that size.
    """
    if not start.command or not start.command[0]:
        raise Invalid("The command is empty", field="command")
    for field, seconds in (("timeout", start.timeout), ("wait_for_agent", start.wait_for_agent)):
        if not 0 <= seconds <= EXEC_TIMEOUT_S_MAX:  # Not a number is neither.
            raise Invalid(
                f"{field} must not be negative or above {EXEC_TIMEOUT_S_MAX:.0f} seconds", field=field
            )
    for field, text in (("cwd", start.cwd), ("user", start.user)):
        if text is not None and ("\0" in text or len(text) > TEXT_LENGTH_MAX):
            raise Invalid(f"{field} holds a NUL character or is too long", field=field)
    argv = _argv("command", start.command)
    assert argv is not None
    return ExecCommand(
        argv=argv,
        env=_env(start.env),
        cwd=start.cwd,
        user=start.user,
        timeout_s=start.timeout,
        has_stdin=start.stdin,
        tty=_window(start) if start.tty else None,
    )


def _window(start: ExecStart) -> WindowSize:
    rows = WINDOW_ROWS_DEFAULT if start.rows is None else start.rows
    cols = WINDOW_COLS_DEFAULT if start.cols is None else start.cols
    return WindowSize(rows, cols)


def to_state(text: str) -> State:
    """Return the state that `text` names, else raise Invalid."""
    try:
        return State(text)
    except ValueError as error:
        remedy = f"use one of {', '.join(State)}"
        raise Invalid(f"{text[:40]!r} is no state", remedy=remedy, field="state") from error


def to_target(text: str | None) -> State | None:
    """Return the state that a copy or an instance is to be brought to; None is "not said".

    Raises:
        Invalid: nothing can be brought to it.
    """
    if text is None:
        return None
    for state in TARGETS:
        if text == state:
            return state
    raise Invalid(
        f"target_state is {text[:40]!r}", remedy=f"use one of {', '.join(TARGETS)}", field="target_state"
    )


def to_kind(text: str) -> SnapshotKind:
    """Return the kind of snapshots that `text` names, else raise Invalid."""
    try:
        return SnapshotKind(text)
    except ValueError as error:
        remedy = f"use one of {', '.join(SnapshotKind)}"
        raise Invalid(f"{text[:40]!r} is no kind of snapshot", remedy=remedy, field="kind") from error


def to_compression(compression: SnapshotCompression | None, delay: str | None = None) -> CompressionAsk:
    """Return what a request says of how stored memory is to be compressed.

    Raises:
        Invalid: the delay is no duration, or there is no such algorithm or level. Where compression is off,
            these two are not looked at.
    """
    with about("compression_delay"):
        delay_s = None if delay is None else parse_duration(delay)
    if delay_s is not None and delay_s > COMPRESSION_DELAY_S_MAX:
        raise Invalid("the delay of compression is longer than a year", field="compression_delay")
    if compression is None:
        return CompressionAsk(delay_s=delay_s)
    how = Compression.of(compression.algorithm, compression.level) if compression.enabled else None
    return CompressionAsk(how, is_said=True, delay_s=delay_s)


def _policy(policy: SnapshotPolicy | None) -> CompressionAsk:
    if policy is None:
        return NOT_SAID
    return to_compression(policy.compression, policy.standby_compression_delay)


def tag_filter(request: Request) -> dict[str, str]:
    """Return the tags that a list is asked for as `tags[key]=value`."""
    pairs = request.query_params.multi_items()
    return {key[5:-1]: value for key, value in pairs if key.startswith("tags[") and key.endswith("]")}


def to_wait_s(text: str | None) -> float:
    """Return how long to wait at most; more than five minutes is five minutes."""
    with about("timeout"):
        wait_s = WAIT_S_DEFAULT if text is None else parse_duration(text)
    return min(wait_s, wire.WAIT_S_MAX)


def _refuse(body: object, table: Mapping[str, Callable[[object], bool]], prefix: str) -> None:
    for field, asks_for_nothing in table.items():
        value = getattr(body, field)
        if value is not None and not asks_for_nothing(value):
            raise _not_yet(prefix + field)


def _not_yet(field: str) -> Unsupported:
    return Unsupported(f"{field} is not supported yet", remedy=f"leave out {field}", field=field)


def _check_platform(platform: str | None, facts: HostFacts) -> None:
    if platform is None or platform == facts.platform:
        return
    to_platform(platform)
    raise Unsupported(
        f"This host does not run {platform}", remedy=f"use an image for {facts.platform}", field="platform"
    )


def to_platform(text: str) -> Platform:
    """Return the platform of an image that a request asks for.

    Raises:
        InvalidPlatform: no guest could be of it, anywhere.
    """
    if _PLATFORM.fullmatch(text) is None:
        raise InvalidPlatform(
            f"{text[:60]!r} is no platform of guests", remedy="write it like linux/amd64", field="platform"
        )
    return parse_platform(text)


def check_tags(tags: Mapping[str, str], field: str = "tags") -> None:
    """Raise Invalid if there are too many tags, or one that cannot be."""
    if len(tags) > TAG_COUNT_MAX:
        raise Invalid(f"There are {len(tags)} tags, and at most {TAG_COUNT_MAX} may be", field=field)
    for key, value in tags.items():
        if _TAG_KEY.fullmatch(key) is None:
            raise Invalid(f"{key[:129]!r} cannot be the key of a tag", field=field)
        if len(value) > TAG_VALUE_LENGTH_MAX:
            raise Invalid(f"The tag {key!r} is longer than {TAG_VALUE_LENGTH_MAX} characters", field=field)


def _size(field: str, text: str | None, default: int, bytes_min: int, bytes_max: int) -> int:
    """Return bytes, rounded up to whole MiB."""
    if text is None:
        return min(default, bytes_max)
    with about(field):
        size_bytes = -(-parse_size(text) // MIB) * MIB
    if not bytes_min <= size_bytes <= bytes_max:
        bounds = f"from {format_size(bytes_min)} to {format_size(bytes_max)}"
        raise Invalid(f"{field} is {text}, and must be {bounds}", field=field)
    return size_bytes


def _memory_bytes(body: wire.CreateInstance, facts: HostFacts) -> int:
    return _size("size", body.size, MEMORY_BYTES_DEFAULT, MEMORY_BYTES_MIN, facts.limits.memory_bytes)


def _hotplug_bytes(body: wire.CreateInstance, facts: HostFacts) -> int:
    """Return how much memory is to come once the guest has booted, rounded up to whole steps.

    Raises:
        Invalid: with what it boots with, it is more than an instance may have; or it is no size.
        Unsupported: its hypervisor plugs none in.
    """
    hypervisor = to_hypervisor(body.hypervisor, facts)
    with about("hotplug_size"):
        asked_bytes = 0 if body.hotplug_size is None else parse_size(body.hotplug_size)
    if not asked_bytes:
        return 0
    memory_bytes, memory_bytes_max = _memory_bytes(body, facts), facts.limits.memory_bytes
    hotplug_bytes = -(-asked_bytes // HOTPLUG_STEP_BYTES) * HOTPLUG_STEP_BYTES
    if memory_bytes + hotplug_bytes > memory_bytes_max:
        raise Invalid(
            f"size and hotplug_size are {format_size(memory_bytes + hotplug_bytes)} together",
            remedy=f"use {format_size(memory_bytes_max)} at most",
            field="hotplug_size",
        )
    demand_hotplug(hypervisor, facts)
    return hotplug_bytes


def _rate(field: str, text: str | None, network: wire.CreateNetwork) -> int | None:
    """Return bytes per second, None where nothing is asked for."""
    if not text:
        return None
    name = f"network.{field}"
    if network.enabled is False:
        raise Invalid(f"{name} is given, and there is no network", remedy=f"leave out {name}", field=name)
    with about(name):
        rate_bytes_per_s = parse_rate(text)
    if not RATE_BYTES_PER_S_MIN <= rate_bytes_per_s <= RATE_BYTES_PER_S_MAX:
        bounds = f"from {format_rate(RATE_BYTES_PER_S_MIN)} to {format_rate(RATE_BYTES_PER_S_MAX)}"
        raise Invalid(f"{name} is {text}, and must be {bounds}", field=name)
    return rate_bytes_per_s


def _env(env: Mapping[str, str] | None) -> Mapping[str, str]:
    env = dict(env or {})
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise Invalid(f"{name[:60]!r} cannot be an environment variable", field="env")
    if sum(len(name.encode()) + len(value.encode()) for name, value in env.items()) > ENVIRONMENT_BYTES_MAX:
        raise Invalid(f"env is larger than {ENVIRONMENT_BYTES_MAX} bytes", field="env")
    return env


def to_start(body: wire.StartInstance) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return the entrypoint and the cmd that `body` asks for, None where it leaves them as they are.

    Raises:
        Invalid: one cannot be passed to a program.
    """
    return _argv("entrypoint", body.entrypoint), _argv("cmd", body.cmd)


def _argv(field: str, argv: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if argv is None:
        return None
    if any("\0" in word for word in argv):
        raise Invalid(f"{field} holds a NUL character", field=field)
    if sum(len(word.encode()) + 1 for word in argv) > ENVIRONMENT_BYTES_MAX:
        raise Invalid(f"{field} is larger than {ENVIRONMENT_BYTES_MAX} bytes", field=field)
    return argv
