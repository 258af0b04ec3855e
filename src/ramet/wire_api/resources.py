"""How full a host is, as `GET /resources` tells it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """One resource: vCPUs, bytes, bytes per second or endpoints.

    `effective_limit` is `capacity` times `oversub_ratio`; `source` "detected", "configured" or "unknown". Of
    an unknown one the first two are 0, and nothing is refused for want of it.
    """

    type: str
    capacity: int
    effective_limit: int
    allocated: int
    available: int
    oversub_ratio: float
    source: str


@dataclass(frozen=True, slots=True)
class DiskBreakdown:
    """What files of the data folder really take, in bytes of allocated blocks."""

    images_bytes: int
    oci_cache_bytes: int
    volumes_bytes: int
    overlays_bytes: int


@dataclass(frozen=True, slots=True)
class ResourceAllocation:
    """What one instance holds. Rates in bytes per second."""

    instance_id: str
    instance_name: str
    cpu: int
    memory_bytes: int
    disk_bytes: int
    network_download_bps: int
    network_upload_bps: int
    disk_io_bps: int


@dataclass(frozen=True, slots=True)
class InstanceStats:
    """What one instance uses of the host, by its VMM's process and its network interface.

    `cpu_seconds` since the VMM started; received is what came to the guest. All 0 while it does not run, and
    the ratio, of resident memory to what was asked for, is null then.
    """

    instance_id: str
    instance_name: str
    allocated_vcpus: int
    allocated_memory_bytes: int
    cpu_seconds: float
    memory_rss_bytes: int
    memory_vms_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    memory_utilization_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Captures:
    """Captures of running sources that are in memory, for forks; their bytes are in `memory`, too."""

    count: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Resources:
    """How full the host is. `endpoints` of the bridge; `taps` there are."""

    cpu: ResourceStatus
    memory: ResourceStatus
    disk: ResourceStatus
    network: ResourceStatus
    disk_io: ResourceStatus
    disk_breakdown: DiskBreakdown
    allocations: tuple[ResourceAllocation, ...]
    endpoints: ResourceStatus
    captures: Captures
    taps: int
