"""What the API takes: fields of each request by version, and the refusal of everything else.

Facts: Firecracker's swagger file and CHANGELOG.md, 1.10 to 1.16.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final

Version = tuple[int, ...]
OLDEST: Final[Version] = (1, 10)
BODY_BYTES_MAX: Final = 51_200  # HTTP_MAX_PAYLOAD_SIZE


class Refused(Exception):
    """The request is answered with 400 and this `fault_message`; `is_fatal`: then the process ends."""

    def __init__(self, message: str, *, is_fatal: bool = False) -> None:
        super().__init__(message)
        self.is_fatal = is_fatal


@dataclass(frozen=True)
class Field:
    """One member of a body. `kind`: a type, the words that it may be, another body, or a list of one."""

    kind: Any
    is_required: bool = False
    since: Version = OLDEST
    until: Version = (99,)


Body = dict[str, Field]


@dataclass(frozen=True)
class Endpoint:
    """One request. `when`: in which states it is taken."""

    body: Body | None
    when: str = "pre"  # "pre", "post" or "any"
    since: Version = OLDEST
    id_field: str | None = None
    needs_one_of: tuple[str, ...] = field(default=())


_BUCKET: Final[Body] = {
    "size": Field(int, True),
    "one_time_burst": Field(int),
    "refill_time": Field(int, True),
}
_LIMITER: Final[Body] = {"bandwidth": Field(_BUCKET), "ops": Field(_BUCKET)}
_MACHINE: Final[Body] = {
    "vcpu_count": Field(int, True),
    "mem_size_mib": Field(int, True),
    "smt": Field(bool),
    "track_dirty_pages": Field(bool),
    "cpu_template": Field(str),
    "huge_pages": Field(("None", "2M")),
}
_DRIVE: Final[Body] = {
    "drive_id": Field(str, True),
    "is_root_device": Field(bool, True),
    "is_read_only": Field(bool),
    "path_on_host": Field(str),
    "partuuid": Field(str),
    "cache_type": Field(("Unsafe", "Writeback")),
    "io_engine": Field(("Sync", "Async")),
    "rate_limiter": Field(_LIMITER),
    "socket": Field(str),
}
_NIC: Final[Body] = {
    "iface_id": Field(str, True),
    "host_dev_name": Field(str, True),
    "guest_mac": Field(str),
    "rx_rate_limiter": Field(_LIMITER),
    "tx_rate_limiter": Field(_LIMITER),
}
_LOAD: Final[Body] = {
    "snapshot_path": Field(str, True),
    "mem_file_path": Field(str),
    "mem_backend": Field({"backend_type": Field(("File", "Uffd"), True), "backend_path": Field(str, True)}),
    "enable_diff_snapshots": Field(bool),
    "track_dirty_pages": Field(bool, since=(1, 13)),
    "resume_vm": Field(bool),
    "network_overrides": Field(
        [{"iface_id": Field(str, True), "host_dev_name": Field(str, True)}], since=(1, 12)
    ),
    "vsock_override": Field({"uds_path": Field(str, True)}, since=(1, 16)),
    "clock_realtime": Field(bool, since=(1, 16)),
}

ENDPOINTS: Final[dict[tuple[str, str], Endpoint]] = {
    ("GET", "/"): Endpoint(None, "any"),
    ("GET", "/version"): Endpoint(None, "any"),
    ("GET", "/machine-config"): Endpoint(None, "any"),
    ("GET", "/vm/config"): Endpoint(None, "any"),
    ("GET", "/balloon"): Endpoint(None, "any"),
    ("PUT", "/machine-config"): Endpoint(_MACHINE),
    ("PUT", "/boot-source"): Endpoint(
        {"kernel_image_path": Field(str, True), "initrd_path": Field(str), "boot_args": Field(str)}
    ),
    ("PUT", "/drives"): Endpoint(_DRIVE, id_field="drive_id"),
    ("PATCH", "/drives"): Endpoint(
        {"drive_id": Field(str, True), "path_on_host": Field(str), "rate_limiter": Field(_LIMITER)},
        "post",
        id_field="drive_id",
    ),
    ("PUT", "/network-interfaces"): Endpoint(_NIC, id_field="iface_id"),
    ("PATCH", "/network-interfaces"): Endpoint(
        {
            "iface_id": Field(str, True),
            "rx_rate_limiter": Field(_LIMITER),
            "tx_rate_limiter": Field(_LIMITER),
        },
        "post",
        id_field="iface_id",
    ),
    ("PUT", "/vsock"): Endpoint(
        {"vsock_id": Field(str), "guest_cid": Field(int, True), "uds_path": Field(str, True)}
    ),
    ("PUT", "/entropy"): Endpoint({"rate_limiter": Field(_LIMITER)}),
    ("PUT", "/balloon"): Endpoint(
        {
            "amount_mib": Field(int, True),
            "deflate_on_oom": Field(bool, True),
            "stats_polling_interval_s": Field(int),
            "free_page_hinting": Field(bool, since=(1, 14)),
            "free_page_reporting": Field(bool, since=(1, 14)),
        }
    ),
    ("PATCH", "/balloon"): Endpoint({"amount_mib": Field(int, True)}, "post"),
    ("PUT", "/serial"): Endpoint({"serial_out_path": Field(str)}, since=(1, 14)),
    ("PUT", "/logger"): Endpoint(
        {
            "log_path": Field(str),
            "level": Field(("Error", "Warning", "Info", "Debug", "Trace", "Off")),
            "show_level": Field(bool),
            "show_log_origin": Field(bool),
            "module": Field(str),
        }
    ),
    ("PUT", "/metrics"): Endpoint({"metrics_path": Field(str, True)}),
    ("PUT", "/actions"): Endpoint(
        {"action_type": Field(("InstanceStart", "FlushMetrics", "SendCtrlAltDel"), True)}, "any"
    ),
    ("PATCH", "/vm"): Endpoint({"state": Field(("Paused", "Resumed"), True)}, "post"),
    ("PUT", "/snapshot/create"): Endpoint(
        {
            "snapshot_type": Field(("Full", "Diff")),
            "snapshot_path": Field(str, True),
            "mem_file_path": Field(str, True),
        },
        "post",
    ),
    ("PUT", "/snapshot/load"): Endpoint(_LOAD, needs_one_of=("mem_file_path", "mem_backend")),
}


def parse(
    version: Version, state: str, method: str, path: str, raw: bytes
) -> tuple[tuple[str, str], dict[str, Any]]:
    """Return which endpoint is meant, and its checked body.

    Raises:
        Refused: it is not one, or not now, or not with these members.
    """
    key, device = (method, path), None
    if key not in ENDPOINTS and path.count("/") == 2:
        key, device = (method, path.rpartition("/")[0]), path.rpartition("/")[2]
    endpoint = ENDPOINTS.get(key)
    if endpoint is None or endpoint.since > version or (device is None) != (endpoint.id_field is None):
        raise Refused(f"Invalid request method and/or path: {method} {path}.")
    if endpoint.body is None:
        if raw:
            raise Refused("GET request cannot have a body.")
        return key, {}
    if len(raw) > BODY_BYTES_MAX:
        raise Refused("The request payload is too large.")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise _unreadable(str(error)) from error
    check(version, endpoint.body, body)
    if endpoint.needs_one_of and sum(name in body for name in endpoint.needs_one_of) != 1:
        raise _unreadable(f"exactly one of {' and '.join(endpoint.needs_one_of)} is required")
    if endpoint.id_field is not None and body[endpoint.id_field] != device:
        raise Refused(f"The id from the path [{device}] does not match the id from the body.")
    is_started = state != "Not started"
    if (endpoint.when == "pre" and is_started) or (endpoint.when == "post" and not is_started):
        when = "after" if is_started else "before"
        raise Refused(f"The requested operation is not supported {when} starting the microVM.")
    return key, body


def check(version: Version, schema: Body, body: Any) -> None:
    """Check a body, or a member of one, in the version of that number.

    Raises:
        Refused: it has other members than it may.
    """
    if not isinstance(body, dict):
        raise _unreadable("invalid type, expected an object")
    known = {name: each for name, each in schema.items() if each.since <= version < each.until}
    for name in body:
        if name not in known:
            raise _unreadable(f"unknown field `{name}`, expected one of {', '.join(known)}")
    for name, each in known.items():
        if name in body:
            _check_kind(version, name, each.kind, body[name])
        elif each.is_required:
            raise _unreadable(f"missing field `{name}`")


def _check_kind(version: Version, name: str, kind: Any, value: Any) -> None:
    match kind:
        case dict():
            check(version, kind, value)
        case list():
            if not isinstance(value, list):
                raise _unreadable(f"invalid type of `{name}`, expected a sequence")
            for each in value:
                check(version, kind[0], each)
        case tuple():
            if value not in kind:
                raise _unreadable(f"unknown variant `{value}`, expected one of {', '.join(kind)}")
        case _:
            if type(value) is not kind or (kind is int and value < 0):
                raise _unreadable(f"invalid value of `{name}`: {value!r}")


def _unreadable(reason: str) -> Refused:
    return Refused(f"An error occurred when deserializing the json body of a request: {reason}.")
