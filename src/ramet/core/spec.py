"""What an instance is, in three parts.

`InstanceSpec` is what was asked for: frozen, and the only part that a fork copies. `InstanceIdentity` is
minted and never copied. `Runtime` tells how to find the VMM process; it can be thrown away and found again.
`InstanceRecord` holds the three, with the state, and is what is stored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any, Final, Literal, Self, TypedDict

from ramet.core.auto_standby import AutoStandby
from ramet.core.compression import NOT_SAID, CompressionAsk
from ramet.core.health import HealthCheck, HealthStatus
from ramet.core.ids import CaptureId, InstanceId, LayerId
from ramet.core.phases import Phases
from ramet.core.restart import RestartPolicy, Restarts
from ramet.core.volumes import VolumeMount, demand_copyable

VCPU_COUNT_MAX: Final = 16
MEMORY_BYTES_MIN: Final = 64 << 20
MEMORY_BYTES_MAX: Final = 32 << 30
OVERLAY_BYTES_MIN: Final = 64 << 20
OVERLAY_BYTES_MAX: Final = 100 << 30
HOTPLUG_STEP_BYTES: Final = 128 << 20
"""What memory that comes while a guest runs is counted in (virtio-mem)."""
FORK_POOL_MAX: Final = 900
"""About the endpoints of a bridge of the default size."""
FORK_POOL_IDLE_S: Final = 600.0
"""How long a pool that nobody forks from is kept."""
RATE_BYTES_PER_S_MIN: Final = 8_000
"""64 Kbps: below it, a full frame takes longer than TCP likes to wait."""
RATE_BYTES_PER_S_MAX: Final = 125_000_000_000
DISK_IO_BYTES_PER_S_MIN: Final = 1_000_000
"""Below it, a guest does not boot in any time that somebody waits for."""
DISK_IO_BYTES_PER_S_MAX: Final = 125_000_000_000

ForkRule = Literal["copied", "cleared", "copied or refused"]


class State(StrEnum):
    """The states of an instance, as the API names them."""

    CREATED = "Created"  # Being made; there is no VMM yet.
    INITIALIZING = "Initializing"  # The VMM runs, the guest is not ready.
    RUNNING = "Running"  # The workload has been started and the guest answers.
    PAUSED = "Paused"  # Its memory is being written, on its way to Standby.
    SHUTDOWN = "Shutdown"  # On its way to Stopped.
    STOPPED = "Stopped"  # No VMM.
    STANDBY = "Standby"  # No VMM; its memory is stored.
    UNKNOWN = "Unknown"  # See `state_error`; can only be deleted.


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What was asked for. Sizes in bytes; `entrypoint` and `cmd` override the image's where not None.

    Download is what comes to the guest, upload what it sends; None is the network's default. While it runs,
    `fork_pool` children are made ahead of the next fork. `compression` is of stored memory, where a request
    says nothing. `auto_standby` is when it sleeps by itself; None: never.
    `health_check` is how it is asked whether it does well, `restart_policy` when it is started again by
    itself; None: not at all. At `expires_at`, in Unix seconds, it is removed; None: never.
    `volumes` are mounted at its next boot, in
    their order; `overlay_parts` are the sizes of what its disk has room for behind the root's overlay.
    `hotplug_bytes` more memory come once it has booted. Its disks let no more through than
    `disk_io_bytes_per_s`, read and written together; None: all they can. With `skip_guest_agent` nobody gets
    in: its guest runs no commands for others, and gives and takes no files.

    Every field names its rule for forks in `FORK_RULES`.
    """

    image: str
    image_digest: str
    hypervisor: str
    vcpu_count: int
    memory_bytes: int
    overlay_bytes: int
    env: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    has_network: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)
    download_bytes_per_s: int | None = None
    upload_bytes_per_s: int | None = None
    fork_pool: int = 0
    compression: CompressionAsk = NOT_SAID
    auto_standby: AutoStandby | None = None
    health_check: HealthCheck | None = None
    restart_policy: RestartPolicy | None = None
    expires_at: float | None = None
    volumes: tuple[VolumeMount, ...] = ()
    overlay_parts: tuple[int, ...] = ()
    hotplug_bytes: int = 0
    disk_io_bytes_per_s: int | None = None
    skip_guest_agent: bool = False

    @property
    def disk_bytes(self) -> int:
        """How large its disk is: all that it can write."""
        return self.overlay_bytes + sum(self.overlay_parts)

    @property
    def disk_parts(self) -> tuple[int, ...]:
        """The sizes of the file systems on its disk, the root's overlay first."""
        return (self.overlay_bytes, *self.overlay_parts)

    @property
    def memory_bytes_max(self) -> int:
        """How much memory it may come to have."""
        return self.memory_bytes + self.hotplug_bytes

    def for_fork(self) -> Self:
        """Return the spec of a child: copied fields as they are, cleared ones at their default.

        Raises:
            VolumeWritable: source and child would write to the same volume.
        """
        demand_copyable(self.volumes)
        return self.copied()

    def copied(self) -> Self:
        """Return what `for_fork` does, of a spec that has children or not."""
        cleared: dict[str, Any] = {
            f.name: _default_of(f.name) for f in fields(self) if FORK_RULES[f.name] == "cleared"
        }
        return replace(self, **cleared)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what `asdict` and JSON made of a spec.

        Raises:
            ValueError, TypeError, KeyError: they did not.
        """
        tuples = {name: None if raw[name] is None else tuple(raw[name]) for name in ("entrypoint", "cmd")}
        spec = {**raw, **tuples}
        if "compression" in raw:
            spec["compression"] = CompressionAsk.from_dict(raw["compression"])
        if raw.get("auto_standby") is not None:
            spec["auto_standby"] = AutoStandby.from_dict(raw["auto_standby"])
        if raw.get("health_check") is not None:
            spec["health_check"] = HealthCheck.from_dict(raw["health_check"])
        if raw.get("restart_policy") is not None:
            spec["restart_policy"] = RestartPolicy.from_dict(raw["restart_policy"])
        spec["volumes"] = tuple(VolumeMount.from_dict(mount) for mount in raw.get("volumes", ()))
        spec["overlay_parts"] = tuple(raw.get("overlay_parts", ()))
        return cls(**spec)


class SpecChanges(TypedDict, total=False):
    """What of a spec can be changed while there is an instance of it."""

    auto_standby: AutoStandby | None
    health_check: HealthCheck | None
    restart_policy: RestartPolicy | None
    expires_at: float | None


FORK_RULES: Final[Mapping[str, ForkRule]] = {
    "image": "copied",
    "image_digest": "copied",
    "hypervisor": "copied",
    "vcpu_count": "copied",
    "memory_bytes": "copied",
    "overlay_bytes": "copied",
    "env": "copied",
    "entrypoint": "copied",
    "cmd": "copied",
    "has_network": "copied",
    "tags": "copied",
    "download_bytes_per_s": "copied",
    "upload_bytes_per_s": "copied",
    "fork_pool": "cleared",
    "compression": "copied",
    "auto_standby": "copied",
    "health_check": "copied",
    "restart_policy": "copied",
    "expires_at": "cleared",
    "volumes": "copied or refused",
    "overlay_parts": "copied",
    "hotplug_bytes": "copied",
    "disk_io_bytes_per_s": "copied",
    "skip_guest_agent": "copied",
}
"""What becomes of each field of a spec in a fork; a test demands that every field is here."""


def _default_of(name: str) -> object:
    spec_field = next(f for f in fields(InstanceSpec) if f.name == name)
    factory = spec_field.default_factory
    return factory() if callable(factory) else spec_field.default


@dataclass(frozen=True, slots=True)
class InstanceIdentity:
    """Who an instance is. `slot` is its place on the bridge, None without a network.

    `machine_id` is 32 hex digits, `created_at` Unix time in seconds, `parent` whom
    it was forked from.
    """

    id: InstanceId
    name: str
    slot: int | None
    machine_id: str
    created_at: float
    parent: InstanceId | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """How to find a VMM process again: never a bare pid, which the kernel gives to others.

    `start_ticks` is field 22 of /proc/PID/stat, `boot_id` /proc/sys/kernel/random/boot_id; `driver` is what
    the VMM's driver must remember, opaque to everyone else.
    """

    pid: int
    start_ticks: int
    boot_id: str
    driver: Mapping[str, object] = field(default_factory=dict)

    @property
    def process(self) -> tuple[int, int, str]:
        """What no two processes have in common."""
        return self.pid, self.start_ticks, self.boot_id


@dataclass(frozen=True, slots=True)
class Exit:
    """How the workload ended: an exit code or a signal number, and a sentence where there is more to say."""

    code: int | None
    signal: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """An instance at one instant that does not pass: a frozen layer and, unless it was stopped, memory."""

    layer: LayerId
    capture: CaptureId | None


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """The stored whole. `layer` is the disk's top; times are Unix seconds; `generation` counts changes.

    `capture` is the stored memory that it wakes from: not None while it sleeps, and until it has woken.
    `becoming` is what whoever asked for it waits for; until it is that, a daemon that starts removes it.
    `restarts` is what was done about its ended runs, `health` how it does in this one, None: not known yet;
    `phases` how long it was what, None: nobody counted yet.
    """

    spec: InstanceSpec
    identity: InstanceIdentity
    state: State
    layer: LayerId | None = None
    capture: CaptureId | None = None
    runtime: Runtime | None = None
    exit: Exit | None = None
    state_error: str = ""
    started_at: float | None = None
    stopped_at: float | None = None
    generation: int = 0
    is_deleting: bool = False
    becoming: State | None = None
    restarts: Restarts = field(default_factory=Restarts)
    health: HealthStatus | None = None
    phases: Phases | None = None

    @property
    def id(self) -> InstanceId:
        return self.identity.id

    @property
    def name(self) -> str:
        return self.identity.name

    def is_run_by(self, runtime: Runtime | None) -> bool:
        """Tell whether `runtime` is the VMM of this record; None stands for it, whichever it is."""
        if runtime is None:
            return True
        return self.runtime is not None and self.runtime.process == runtime.process

    def to_json(self) -> str:
        return json.dumps(self, default=_plain, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it was not.
        """
        raw = json.loads(text)
        raw["spec"] = InstanceSpec.from_dict(raw["spec"])
        raw["identity"] = InstanceIdentity(**raw["identity"])
        raw["state"] = State(raw["state"])
        becoming = raw.get("becoming")
        raw["becoming"] = None if becoming is None else State(becoming)
        raw["runtime"] = raw["runtime"] and Runtime(**raw["runtime"])
        raw["exit"] = raw["exit"] and Exit(**raw["exit"])
        if "restarts" in raw:
            raw["restarts"] = Restarts.from_dict(raw["restarts"])
        health, phases = raw.get("health"), raw.get("phases")
        raw["health"] = None if health is None else HealthStatus(health)
        raw["phases"] = None if phases is None else Phases.from_dict(phases)
        return cls(**raw)


def _plain(value: object) -> dict[str, object]:
    """Return what JSON does not know as an object: a part of a record, or a mapping.

    Shallow, where `dataclasses.asdict` copies everything: a record is written several times in each fork.
    """
    if isinstance(value, Mapping):
        return dict(value)
    assert is_dataclass(value), f"a record holds a {type(value).__name__}"
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
