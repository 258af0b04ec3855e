"""Which hypervisor a request means, and whether this host has it."""

from typing import Final

from ramet.api.facts import DISK_IO_LIMIT, HOTPLUG_MEMORY, HostFacts
from ramet.core.errors import Invalid, Unsupported
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.instance.fleet_types import HypervisorUnavailable

HYPERVISORS: Final = frozenset({"cloud-hypervisor", "firecracker", "qemu", "qemu-microvm", "vz"})
"""All that there are somewhere."""


def to_hypervisor(name: str | None, facts: HostFacts, field: str = "hypervisor") -> str:
    """Return the hypervisor that `name` asks for; None asks for the default.

    Raises:
        Invalid: there is no such hypervisor.
        HypervisorUnavailable: this host does not have it.
    """
    wanted = facts.default_hypervisor if name is None else name
    available = [runtime.name for runtime in facts.runtimes if runtime.is_available]
    if wanted in available:
        return wanted
    if wanted not in HYPERVISORS:
        raise Invalid(
            f"{wanted[:40]!r} is no hypervisor", remedy=f"use one of {', '.join(available)}", field=field
        )
    raise HypervisorUnavailable(
        f"The hypervisor {wanted} is not available here",
        remedy=f"use one of {', '.join(available)}" if available else "",
        field=field,
    )


def demand_hotplug(hypervisor: str, facts: HostFacts) -> None:
    """Check that memory can be plugged into a guest of `hypervisor` while it runs.

    Raises:
        Unsupported: it cannot; the error names those of this host that can.
    """
    _demand(HOTPLUG_MEMORY, hypervisor, facts, "plugs no memory into a guest that runs", "hotplug_size")


def demand_disk_limit(hypervisor: str, facts: HostFacts) -> None:
    """Check that `hypervisor` limits what a guest's disks let through.

    Raises:
        Unsupported: it does not; the error names those of this host that do.
    """
    _demand(DISK_IO_LIMIT, hypervisor, facts, "has no limit of what disks let through", "disk_io_bps")


def _demand(feature: str, hypervisor: str, facts: HostFacts, failing: str, field: str) -> None:
    able = [each.name for each in facts.runtimes if each.is_available and feature in each.features]
    if hypervisor not in able:
        raise Unsupported(
            f"{hypervisor} {failing}",
            remedy=f"use hypervisor {' or '.join(able)}" if able else f"leave out {field}",
            field=field,
        )


def to_target_hypervisor(name: str | None, snapshot: SnapshotRecord, facts: HostFacts) -> str | None:
    """Return the hypervisor that a snapshot is to go on with, None if that is its own.

    Raises:
        Invalid: there is no such hypervisor.
        HypervisorUnavailable: this host does not have it.
        Unsupported: what is in memory can only go on with its own.
    """
    own = snapshot.spec.hypervisor
    if name is None or name == own:
        return None
    if name in HYPERVISORS and snapshot.kind is SnapshotKind.STANDBY:
        raise Unsupported(
            f"A snapshot with memory goes on with its own hypervisor, {own}, only",
            remedy="leave out target_hypervisor",
            field="target_hypervisor",
        )
    return to_hypervisor(name, facts, "target_hypervisor")
