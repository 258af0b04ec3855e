"""Instances as the API shows them and as requests ask for them.

Field names, units and defaults are those of the official client of the API we are compatible with; a line
"Additive" marks what is ours. Requests name every field that client can send, also those we cannot honour
yet: what is known and refused is told apart from what is a typing error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ramet.wire_api.auto_standby import AutoStandbyPolicy
from ramet.wire_api.compression import SnapshotPolicy
from ramet.wire_api.errors import Error
from ramet.wire_api.pools import ForkPool
from ramet.wire_api.supervision import HealthCheck, HealthStatus, RestartPolicy, RestartStatus
from ramet.wire_api.volumes import VolumeMount

API_VERSION: Final = "0.3.0"
"""Version of the compatible API, not of ramet."""

FORK_COUNT_MAX: Final = 1000
WAIT_S_MAX: Final = 300.0
LOG_TAIL_LINES_DEFAULT: Final = 100

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class InstanceNetwork:
    """The network of an instance; addresses as text, null without one. Rates such as "1Gbps", null without.

    Additive: `degraded`, why it is not limited as asked, null as long as it is.
    """

    enabled: bool
    name: str | None = None
    ip: str | None = None
    mac: str | None = None
    bandwidth_download: str | None = None
    bandwidth_upload: str | None = None
    degraded: str | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance. Sizes such as "1GB", times in RFC 3339 and UTC.

    Additive: `image_digest`; `skip_guest_agent`; `parent_id`, of what it was forked from; `fork_pool`, null
    without one; `timings_ms` by phase, in the answer to its fork only.
    """

    id: str
    name: str
    image: str
    state: str
    created_at: str
    state_error: str | None = None
    image_digest: str | None = None
    platform: str | None = None
    hypervisor: str | None = None
    size: str | None = None
    hotplug_size: str | None = None
    overlay_size: str | None = None
    disk_io_bps: str | None = None
    vcpus: int | None = None
    env: Mapping[str, str] | None = None
    tags: Mapping[str, str] | None = None
    network: InstanceNetwork | None = None
    snapshot_policy: SnapshotPolicy | None = None
    auto_standby: AutoStandbyPolicy | None = None
    health_check: HealthCheck | None = None
    health_status: HealthStatus | None = None
    restart_policy: RestartPolicy | None = None
    restart_status: RestartStatus | None = None
    current_phase: str | None = None
    current_phase_since: str | None = None
    phase_durations_ms: Mapping[str, int] | None = None
    has_snapshot: bool = False
    exit_code: int | None = None
    exit_message: str | None = None
    started_at: str | None = None
    stopped_at: str | None = None
    expires_at: str | None = None
    volumes: tuple[VolumeMount, ...] = ()
    skip_guest_agent: bool = False
    parent_id: str | None = None
    fork_pool: ForkPool | None = None
    timings_ms: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class CreateNetwork:
    """The network asked for; on unless `enabled` is false. Download is what comes to the guest."""

    enabled: bool | None = None
    bandwidth_download: str | None = None
    bandwidth_upload: str | None = None
    egress: Mapping[str, Any] | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class CreateInstance:
    """The body of `POST /instances`. None is "not said"; the server has the defaults.

    Additive: `fork_pool`, see `SetForkPool`.
    """

    name: str
    image: str
    size: str | None = None
    overlay_size: str | None = None
    vcpus: int | None = None
    env: Mapping[str, str] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    tags: Mapping[str, str] | None = None
    network: CreateNetwork | None = None
    hypervisor: str | None = None
    platform: str | None = None
    skip_kernel_headers: bool | None = None
    skip_guest_agent: bool | None = None
    hotplug_size: str | None = None
    disk_io_bps: str | None = None
    credentials: Mapping[str, Any] | None = None
    ttl: str | None = None
    expires_at: str | None = None
    devices: tuple[str, ...] | None = None
    gpu: Mapping[str, Any] | None = None
    volumes: tuple[VolumeMount, ...] | None = None
    snapshot_policy: SnapshotPolicy | None = None
    auto_standby: AutoStandbyPolicy | None = None
    health_check: HealthCheck | None = None
    restart_policy: RestartPolicy | None = None
    fork_pool: int | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class UpdateInstance:
    """The body of `PATCH /instances/{id}`: what is given counts from here on, the rest stays as it is.

    Of policies and of the check, too, what is not given stays. A `ttl` counts from now; of zero, it ends
    `expires_at`.
    """

    auto_standby: AutoStandbyPolicy | None = None
    env: Mapping[str, str] | None = None
    expires_at: str | None = None
    health_check: HealthCheck | None = None
    restart_policy: RestartPolicy | None = None
    ttl: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class StartInstance:
    """The body of `POST /instances/{id}/start`; what is given replaces the instance's own from here on."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class ForkInstance:
    """The body of `POST /instances/{id}/fork`; `target_state` is by default that of the source."""

    name: str
    from_running: bool = False
    target_state: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class ForkMany:
    """The body of `POST /instances/{id}/forks` and of `POST /snapshots/{id}/forks` (additive).

    Either `names`, or `count` and `name_prefix`: then the children are `<name_prefix>-1` and so on.
    """

    count: int | None = None
    name_prefix: str | None = None
    names: tuple[str, ...] | None = None
    target_state: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class ForkResult:
    """What became of one child: `instance` or `error`."""

    name: str
    instance: Instance | None = None
    error: Error | None = None
    timings_ms: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class ForkManyResult:
    """What became of all children, in the order of their names."""

    forks: tuple[ForkResult, ...]
    succeeded: int


@dataclass(frozen=True, slots=True)
class WaitResult:
    """What the instance was when the waiting ended."""

    state: str
    timed_out: bool
    state_error: str | None = None
