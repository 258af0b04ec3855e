"""What the JSON payloads say, as frozen types (docs/guest-protocol.md, Frame types and Requests).

The other side may be old, broken or hostile, so everything received is checked member by member, once,
here; members nobody knows are ignored. Beyond this module a message is right or it is a `ProtocolError`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Final, Literal, cast

from ramet.wire.frames import ProtocolError
from ramet.wire.version import PROTOCOL_VERSION

Streams = Literal["kill", "keep"]
WorkloadState = Literal["starting", "running", "frozen", "exited"]

NUMBER_MAX: Final = 1e15
"""No duration is longer than that many seconds; an integer of a thousand digits is not a float."""

TERMINAL_SIDE_MAX: Final = 65_535

_WORKLOAD_STATES: Final = ("starting", "running", "frozen", "exited")
_encode_json = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


def dump(message: Mapping[str, object]) -> bytes:
    """Return `message` as the JSON of a payload: ASCII, one line."""
    return _encode_json(message).encode("ascii")


def load(payload: bytes) -> dict[str, Any]:
    """Return the JSON object a payload holds.

    Raises:
        ProtocolError: it is not UTF-8, not JSON, or not an object.
    """
    try:
        message = json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a payload that is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a payload that is {type(message).__name__}, not an object")
    return message


@dataclass(frozen=True, slots=True)
class Workload:
    """The image's own process, as the guest sees it."""

    state: WorkloadState
    pid: int | None = None
    code: int | None = None
    signal: int | None = None
    message: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "state": self.state,
            "pid": self.pid,
            "code": self.code,
            "signal": self.signal,
            "message": self.message,
        }

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "Workload":
        state = parse_text(message, "state")
        if state not in _WORKLOAD_STATES:
            raise ProtocolError(f"a workload that is {state!r}")
        return cls(
            state=cast(WorkloadState, state),
            pid=parse_int_or_none(message, "pid"),
            code=parse_int_or_none(message, "code"),
            signal=parse_int_or_none(message, "signal"),
            message=parse_text(message, "message", ""),
        )


@dataclass(frozen=True, slots=True)
class Hello:
    """The host's first word. `nonce` is 32 hex digits that no other hello has."""

    nonce: str
    streams: Streams = "kill"
    version: int = PROTOCOL_VERSION

    def to_json(self) -> dict[str, object]:
        return {"version": self.version, "nonce": self.nonce, "streams": self.streams}

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "Hello":
        streams = parse_text(message, "streams", "kill")
        if streams not in ("kill", "keep"):
            raise ProtocolError(f"a hello with streams {streams!r}")
        return cls(parse_text(message, "nonce"), cast(Streams, streams), parse_int(message, "version"))


@dataclass(frozen=True, slots=True)
class HelloAck:
    """The guest's answer to one hello, with its nonce. `version` may be another than was asked for.

    A guest of another version may describe its workload otherwise; then `workload` is None.
    """

    nonce: str
    agent: str
    workload: Workload | None
    version: int = PROTOCOL_VERSION

    def to_json(self) -> dict[str, object]:
        workload = self.workload.to_json() if self.workload else None
        return {"version": self.version, "nonce": self.nonce, "agent": self.agent, "workload": workload}

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "HelloAck":
        version = parse_int(message, "version")
        ours = version == PROTOCOL_VERSION
        return cls(
            nonce=parse_text(message, "nonce"),
            agent=parse_text(message, "agent", None if ours else ""),
            workload=Workload.from_json(parse_object(message, "workload")) if ours else None,
            version=version,
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the guest did not do what a request asked."""

    code: str
    message: str

    def to_json(self) -> dict[str, object]:
        return {"error": {"code": self.code, "message": self.message}}


def load_response(payload: bytes) -> dict[str, Any] | Refusal:
    """Return what a RESPONSE says: the members of its `ok`, or the refusal.

    Raises:
        ProtocolError: it is neither.
    """
    message = load(payload)
    if "error" in message:
        error = parse_object(message, "error")
        return Refusal(parse_text(error, "code"), parse_text(error, "message", ""))
    return parse_object(message, "ok")


@dataclass(frozen=True, slots=True)
class Network:
    """The guest's place on its bridge."""

    mac: str
    ip: IPv4Address
    prefix_length: int
    gateway: IPv4Address
    dns: tuple[IPv4Address, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "mac": self.mac,
            "ip": str(self.ip),
            "prefix_length": self.prefix_length,
            "gateway": str(self.gateway),
            "dns": [str(address) for address in self.dns],
        }

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "Network":
        prefix_length = parse_int(message, "prefix_length")
        if not 0 <= prefix_length <= 32:
            raise ProtocolError(f"a prefix of {prefix_length} bits")
        return cls(
            mac=parse_text(message, "mac"),
            ip=parse_address(parse_text(message, "ip")),
            prefix_length=prefix_length,
            gateway=parse_address(parse_text(message, "gateway")),
            dns=tuple(parse_address(address) for address in parse_texts(message, "dns")),
        )


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that makes a guest itself and no other. `clock_ns` is Unix time."""

    hostname: str
    machine_id: str
    clock_ns: int
    entropy: bytes = field(repr=False)
    network: Network | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "hostname": self.hostname,
            "machine_id": self.machine_id,
            "clock_ns": self.clock_ns,
            "entropy": self.entropy.hex(),
            "network": self.network.to_json() if self.network else None,
        }

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "Identity":
        return cls(
            hostname=parse_text(message, "hostname"),
            machine_id=parse_text(message, "machine_id"),
            clock_ns=parse_int(message, "clock_ns"),
            entropy=parse_hex(message, "entropy"),
            network=parse_network(message),
        )


@dataclass(frozen=True, slots=True)
class IdentityAnswer:
    """Who the guest is now, as its kernel says. `mac` and `ip` are None in a guest without network."""

    mac: str | None
    ip: IPv4Address | None
    hostname: str
    ran_before_identity: bool

    def to_json(self) -> dict[str, object]:
        return {
            "mac": self.mac,
            "ip": str(self.ip) if self.ip else None,
            "hostname": self.hostname,
            "ran_before_identity": self.ran_before_identity,
        }

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "IdentityAnswer":
        ip = parse_text_or_none(message, "ip")
        return cls(
            mac=parse_text_or_none(message, "mac") or None,
            ip=parse_address(ip) if ip else None,
            hostname=parse_text(message, "hostname"),
            ran_before_identity=parse_bool(message, "ran_before_identity"),
        )


@dataclass(frozen=True, slots=True)
class Health:
    """The answer to `health`."""

    workload: Workload
    uptime_s: float

    def to_json(self) -> dict[str, object]:
        return {"workload": self.workload.to_json(), "uptime_s": self.uptime_s}

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "Health":
        return cls(Workload.from_json(parse_object(message, "workload")), parse_number(message, "uptime_s"))


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The size of a terminal in characters, 1 to 65,535 each."""

    rows: int
    cols: int

    def to_json(self) -> dict[str, object]:
        return {"rows": self.rows, "cols": self.cols}

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "TerminalSize":
        size = cls(parse_int(message, "rows"), parse_int(message, "cols"))
        if not (1 <= size.rows <= TERMINAL_SIDE_MAX and 1 <= size.cols <= TERMINAL_SIDE_MAX):
            raise ProtocolError(f"a terminal of {size.rows} rows and {size.cols} columns")
        return size


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What to run. `cwd` and `user` None mean the workload's; `timeout_s` 0 means none; `tty` None: pipes."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    timeout_s: float = 0.0
    stdin: bool = False
    tty: TerminalSize | None = None

    def to_json(self) -> dict[str, object]:
        message: dict[str, object] = {"argv": list(self.argv), "env": dict(self.env), "stdin": self.stdin}
        if self.cwd is not None:
            message["cwd"] = self.cwd
        if self.user is not None:
            message["user"] = self.user
        if self.timeout_s:
            message["timeout_s"] = self.timeout_s
        if self.tty is not None:
            message["tty"] = self.tty.to_json()
        return message

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "ExecRequest":
        return cls(
            argv=parse_texts(message, "argv"),
            env=parse_text_map(message, "env"),
            cwd=parse_text_or_none(message, "cwd"),
            user=parse_text_or_none(message, "user"),
            timeout_s=parse_number(message, "timeout_s", 0.0),
            stdin=parse_bool(message, "stdin", False),
            tty=None if message.get("tty") is None else TerminalSize.from_json(parse_object(message, "tty")),
        )


@dataclass(frozen=True, slots=True)
class PathReport:
    """What is at a path; `mode` is its permission bits. `error`: why nobody can tell."""

    exists: bool
    is_dir: bool = False
    is_file: bool = False
    is_symlink: bool = False
    link_target: str | None = None
    mode: int = 0
    size_bytes: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    error: str | None = None

    def to_json(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "PathReport":
        return cls(
            exists=parse_bool(message, "exists"),
            is_dir=parse_bool(message, "is_dir"),
            is_file=parse_bool(message, "is_file"),
            is_symlink=parse_bool(message, "is_symlink"),
            link_target=parse_text_or_none(message, "link_target"),
            mode=parse_int(message, "mode"),
            size_bytes=parse_int(message, "size_bytes"),
            uid=parse_int(message, "uid"),
            gid=parse_int(message, "gid"),
            mtime_ns=parse_int(message, "mtime_ns"),
            error=parse_text_or_none(message, "error"),
        )


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: `code` or `signal`; `timed_out` if the guest ended it at its time limit."""

    code: int | None
    signal: int | None = None
    timed_out: bool = False

    def to_json(self) -> dict[str, object]:
        return {"code": self.code, "signal": self.signal, "timed_out": self.timed_out}

    @classmethod
    def from_json(cls, message: Mapping[str, object]) -> "ExitStatus":
        code, signal = parse_int_or_none(message, "code"), parse_int_or_none(message, "signal")
        if (code is None) == (signal is None):
            raise ProtocolError(f"an exit with code {code} and signal {signal}")
        return cls(code, signal, parse_bool(message, "timed_out", False))


@dataclass(frozen=True, slots=True)
class WorkloadExited:
    """The workload ended; the guest powers off behind it."""

    code: int | None
    signal: int | None
    message: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "event": "workload_exited",
            "code": self.code,
            "signal": self.signal,
            "message": self.message,
        }


def load_event(payload: bytes) -> WorkloadExited | None:
    """Return what an EVENT says, or None if it is one this version does not know.

    Raises:
        ProtocolError: a known event with wrong members.
    """
    message = load(payload)
    if parse_text(message, "event") != "workload_exited":
        return None
    return WorkloadExited(
        code=parse_int_or_none(message, "code"),
        signal=parse_int_or_none(message, "signal"),
        message=parse_text(message, "message", ""),
    )


def parse_text(message: Mapping[str, object], name: str, default: str | None = None) -> str:
    """Return the member `name` of `message`, a text, or raise ProtocolError."""
    value = message.get(name, default)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} is {value!r}, not text")
    return value


def parse_text_or_none(message: Mapping[str, object], name: str) -> str | None:
    """Return the member `name`, text, or None where it is null or absent; or raise ProtocolError."""
    return None if message.get(name) is None else parse_text(message, name)


def parse_int(message: Mapping[str, object], name: str) -> int:
    """Return the member `name` of `message`, a whole number, or raise ProtocolError."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProtocolError(f"{name} is {value!r}, not a whole number")
    return value


def parse_int_or_none(message: Mapping[str, object], name: str) -> int | None:
    """Return the member `name`, a whole number, None where it is null or absent; or raise ProtocolError."""
    return None if message.get(name) is None else parse_int(message, name)


def parse_number(message: Mapping[str, object], name: str, default: float | None = None) -> float:
    """Return the member `name` of `message`, a number, or raise ProtocolError."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= NUMBER_MAX:
        raise ProtocolError(f"{name} is {value!r}, not a number")
    return float(value)


def parse_bool(message: Mapping[str, object], name: str, default: bool | None = None) -> bool:
    """Return the member `name` of `message`, a truth value, or raise ProtocolError."""
    value = message.get(name, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} is {value!r}, not true or false")
    return value


def parse_object(message: Mapping[str, object], name: str) -> dict[str, Any]:
    """Return the member `name` of `message`, an object, or raise ProtocolError."""
    value = message.get(name)
    if not isinstance(value, dict):
        raise ProtocolError(f"{name} is {value!r}, not an object")
    return value


def parse_texts(message: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Return the member `name` of `message`, a list of texts, or raise ProtocolError."""
    value = message.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProtocolError(f"{name} is {value!r}, not a list of texts")
    return tuple(value)


def parse_text_map(message: Mapping[str, object], name: str) -> dict[str, str]:
    """Return the member `name`, an object of texts, {} where it is absent; or raise ProtocolError."""
    value = message.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ProtocolError(f"{name} is {value!r}, not an object of texts")
    return dict(value)


def parse_hex(message: Mapping[str, object], name: str) -> bytes:
    """Return the member `name` of `message`, which is bytes in hex, or raise ProtocolError."""
    try:
        return bytes.fromhex(parse_text(message, name))
    except ValueError as error:
        raise ProtocolError(f"{name} is not hex") from error


def parse_address(text: str) -> IPv4Address:
    """Return the address `text` stands for, or raise ProtocolError."""
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise ProtocolError(f"{text!r} is not an IPv4 address") from error


def parse_network(message: Mapping[str, object]) -> Network | None:
    """Return the member `network` of `message`, None where it is null or absent, or raise ProtocolError."""
    return None if message.get("network") is None else Network.from_json(parse_object(message, "network"))
