"""How much longer a guest takes to write out what it has not written yet, if its disks are limited.

Whoever waits for that (a stop, a capture, a sleep) has to wait longer then: what a guest that is given up has
not written is lost.
"""

from typing import Final

from ramet.core.spec import InstanceSpec

DIRTY_SHARE: Final = 0.2
"""Of a guest's memory, what waits to be written at most: Linux lets nobody go beyond (`vm.dirty_ratio`)."""


def write_out_s(spec: InstanceSpec) -> float:
    """Return how many seconds it may take for the limit alone; 0 without one."""
    if spec.disk_io_bytes_per_s is None:
        return 0.0
    return spec.memory_bytes_max * DIRTY_SHARE / spec.disk_io_bytes_per_s
