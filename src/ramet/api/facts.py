"""What this host is, found out once at start; the API only repeats it."""

from dataclasses import dataclass
from typing import Final

from ramet.core.spec import MEMORY_BYTES_MAX, OVERLAY_BYTES_MAX, VCPU_COUNT_MAX

HOTPLUG_MEMORY: Final = "hotplug-memory"
DISK_IO_LIMIT: Final = "disk-io-limit"
BALLOON: Final = "balloon-control"
VSOCK: Final = "vsock"
_FEATURES: Final = ("snapshots", "standby", "fork")


def runtime_features(
    *,
    plugs_memory: bool = False,
    limits_disks: bool = False,
    has_balloon: bool = False,
    speaks_vsock: bool = False,
) -> tuple[str, ...]:
    """Return what a hypervisor can do, in the words of `GET /capabilities`."""
    more = (
        (HOTPLUG_MEMORY, plugs_memory),
        (DISK_IO_LIMIT, limits_disks),
        (BALLOON, has_balloon),
        (VSOCK, speaks_vsock),
    )
    return (*_FEATURES, *(name for name, can in more if can))


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """One hypervisor: `features` as in `GET /capabilities`."""

    name: str
    is_available: bool
    features: tuple[str, ...] = _FEATURES


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """What one instance may have at most; `memory_bytes` with what is plugged in."""

    vcpu_count: int = VCPU_COUNT_MAX
    memory_bytes: int = MEMORY_BYTES_MAX
    overlay_bytes: int = OVERLAY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What `GET /capabilities` tells, and what requests are checked against.

    Attributes:
        version: of ramet.
        default_hypervisor: of an instance that names none; one of `runtimes`.
        gateway: address of the host on the guests' network; `subnet` its CIDR. None without a network.
    """

    version: str
    default_hypervisor: str
    runtimes: tuple[RuntimeFacts, ...]
    gateway: str | None = None
    subnet: str | None = None
    arch: str = "amd64"
    limits: SizeLimits = SizeLimits()

    @property
    def platform(self) -> str:
        """The one platform of images that runs here."""
        return f"linux/{self.arch}"
