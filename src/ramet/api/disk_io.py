"""How much an instance's disks let through: `disk_io_bps`, from the wire to the domain."""

from ramet.api.bounds import about
from ramet.api.facts import HostFacts
from ramet.api.hypervisors import demand_disk_limit, to_hypervisor
from ramet.core.errors import Invalid
from ramet.core.spec import DISK_IO_BYTES_PER_S_MAX, DISK_IO_BYTES_PER_S_MIN
from ramet.core.units import format_byte_rate, parse_rate
from ramet.wire_api.instances import CreateInstance


def to_disk_io(body: CreateInstance, facts: HostFacts) -> int | None:
    """Return how much may be read and written together, in bytes per second; None: as much as can be.

    Raises:
        Invalid: it is no rate, or out of bounds.
        Unsupported: its hypervisor has no such limit.
    """
    if not body.disk_io_bps:
        return None
    with about("disk_io_bps"):
        rate_bytes_per_s = parse_rate(body.disk_io_bps)
    if not DISK_IO_BYTES_PER_S_MIN <= rate_bytes_per_s <= DISK_IO_BYTES_PER_S_MAX:
        least, most = map(format_byte_rate, (DISK_IO_BYTES_PER_S_MIN, DISK_IO_BYTES_PER_S_MAX))
        raise Invalid(
            f"disk_io_bps is {body.disk_io_bps}, and must be from {least} to {most}", field="disk_io_bps"
        )
    demand_disk_limit(to_hypervisor(body.hypervisor, facts), facts)
    return rate_bytes_per_s
