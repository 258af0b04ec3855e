"""What an instance holds of the host, told by its record alone.

A demand is an upper bound: all the memory a guest was promised, all the bytes its disk may grow to. What is
counted so can be too much, and never too little.
"""

from enum import StrEnum
from typing import Final, NamedTuple, Self

from ramet.core.spec import InstanceRecord, State


class Resource(StrEnum):
    """What can run out, in the order of the members of `Demand`."""

    CPU = "cpu"
    MEMORY = "memory"
    DISK = "disk"
    NETWORK = "network"
    DISK_IO = "disk_io"


class Demand(NamedTuple):
    """An amount of each resource."""

    cpu_count: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    network_bytes_per_s: int = 0
    disk_io_bytes_per_s: int = 0

    def larger(self, other: "Demand") -> Self:
        """Return the larger of both amounts for each resource."""
        return type(self)(*map(max, self, other))


NOTHING: Final = Demand()

_WITHOUT_VMM: Final = frozenset({State.STOPPED, State.STANDBY})
_MAY_STORE_MEMORY: Final = frozenset({State.PAUSED, State.STANDBY, State.UNKNOWN})


def has_vmm(record: InstanceRecord) -> bool:
    """Tell whether the instance has a VMM, is about to have one, or may have one: nobody knows of Unknown."""
    if record.runtime is not None:
        return True
    if record.becoming is State.RUNNING and not record.is_deleting:
        return True
    return record.state not in _WITHOUT_VMM and not record.is_deleting


def demand_of(record: InstanceRecord) -> Demand:
    """Return what an instance with this record holds.

    With a VMM it holds processors, memory and disk, without one its disk; asleep, that has its memory, too.
    Unknown holds all that it may have. Of the network it holds the higher of the two rates it asked for, of
    what disks let through the rate it asked for.
    """
    spec = record.spec
    stores_memory = record.capture is not None or record.state in _MAY_STORE_MEMORY
    disk_bytes = spec.disk_bytes + (spec.memory_bytes_max if stores_memory else 0)
    if not has_vmm(record):
        return Demand(disk_bytes=disk_bytes)
    rates = (spec.download_bytes_per_s or 0, spec.upload_bytes_per_s or 0)
    disk_io = spec.disk_io_bytes_per_s or 0
    return Demand(spec.vcpu_count, spec.memory_bytes_max, disk_bytes, max(rates), disk_io)
