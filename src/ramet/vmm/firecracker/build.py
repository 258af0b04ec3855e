"""A machine as requests: what every Firecracker of ours has, in one fixed order.

All that belongs to one VM alone is named relative to its folder, which is the VMM's working directory. A
snapshot therefore names nothing of its source, and a child loads it as it is.

Order and options are the device model, an ABI: whoever changes them raises `DEVICE_MODEL`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ramet.vmm.firecracker.limiters import disk_limiter_of, limiters_of
from ramet.vmm.port import Machine, VmmUnsupported
from ramet.vmm.raw_overlay import OVERLAY_LINK, volume_link
from ramet.wire.vsock import SOCKET_SUFFIX

DEVICE_MODEL: Final = 1
API_SOCKET: Final = "api.sock"
AGENT_SOCKET: Final = f"agent{SOCKET_SUFFIX}"
CONSOLE: Final = "console.log"
LOG: Final = "vmm.log"
METRICS: Final = "metrics.json"
OVERLAY_DRIVE: Final = "overlay"
NIC: Final = "nic"
NAME_PREFIX: Final = "ramet-"
VOLUME_COUNT_MAX: Final = 8
GUEST_CID: Final = 3
"""The same for all: a guest is reached through its own socket, never by this number."""
KERNEL_ARGUMENTS: Final = "console=ttyS0 quiet reboot=k panic=-1 pci=off net.ifnames=0 ipv6.disable=1"
"""`reboot=k`: by the keyboard controller, which is how a guest ends its VMM; there is no power button."""

Request = tuple[str, dict[str, object]]
"""Path and body of a PUT."""


def demand_buildable(machine: Machine) -> None:
    """Check that Firecracker can build `machine`.

    Raises:
        VmmUnsupported: it has no such device.
    """
    machine.demand_fixed_size("firecracker")
    if len(machine.volumes) > VOLUME_COUNT_MAX:
        raise VmmUnsupported(
            f"an instance on firecracker has {VOLUME_COUNT_MAX} volumes at most, not {len(machine.volumes)}",
            remedy="use fewer volumes, or another hypervisor",
        )
    disks = (machine.overlay, *machine.volumes)
    if any(layer_format != "raw" for disk in disks for _, layer_format in disk.layers):
        raise VmmUnsupported(
            "firecracker reads raw disks only, and this one has qcow2 layers", remedy="use hypervisor qemu"
        )
    if machine.nic is not None and machine.nic.tap_name is None:
        raise VmmUnsupported(
            "firecracker opens its TAP by name, and this one is held by descriptor",
            remedy="use hypervisor qemu, or no network",
        )


def requests_of(machine: Machine) -> Iterator[Request]:
    """Yield what Firecracker is to be told before it starts `machine`."""
    yield (
        "/machine-config",
        {
            "vcpu_count": machine.vcpu_count,
            "mem_size_mib": machine.memory_bytes >> 20,
            # So that the devices can be stored without all of the memory.
            "track_dirty_pages": True,
        },
    )
    yield (
        "/boot-source",
        {
            "kernel_image_path": str(machine.kernel),
            "initrd_path": str(machine.initramfs),
            "boot_args": KERNEL_ARGUMENTS,
        },
    )
    yield from _drives(machine)
    if machine.nic is not None:
        nic: dict[str, object] = {
            "iface_id": NIC,
            "guest_mac": machine.nic.mac,
            "host_dev_name": machine.nic.tap_name,
        }
        if machine.nic.limits is not None:
            nic |= limiters_of(machine.nic.limits)
        yield f"/network-interfaces/{NIC}", nic
    yield "/vsock", {"guest_cid": GUEST_CID, "uds_path": AGENT_SOCKET}
    yield "/entropy", {}
    yield "/balloon", {"amount_mib": 0, "deflate_on_oom": True}


def disk_limits_of(machine: Machine) -> Iterator[Request]:
    """Yield what a Firecracker that has loaded `machine` is to be told of its disks, as bodies of a PATCH."""
    if machine.disk_io_bytes_per_s is not None:
        for path, drive in _drives(machine):
            yield path, {name: drive[name] for name in ("drive_id", "rate_limiter")}


def _drives(machine: Machine) -> Iterator[Request]:
    drives = [
        _drive("root", machine.root, is_read_only=True),
        _drive(OVERLAY_DRIVE, Path(OVERLAY_LINK), is_read_only=False),
        _drive("config", _relative(machine.config, machine.folder), is_read_only=True),
    ]
    for index, volume in enumerate(machine.volumes):  # Behind the others: the guest counts them.
        drives.append(_drive(f"volume{index}", Path(volume_link(index)), is_read_only=volume.is_read_only))
    rate = machine.disk_io_bytes_per_s
    limiter = {} if rate is None else disk_limiter_of(rate)
    for path, drive in drives:
        yield path, drive | limiter


def _drive(name: str, path: Path, *, is_read_only: bool) -> Request:
    drive: dict[str, object] = {
        "drive_id": name,
        # None is: Firecracker would add root=/dev/vda to the kernel's arguments; our initramfs mounts.
        "is_root_device": False,
        "is_read_only": is_read_only,
        "path_on_host": str(path),
    }
    if not is_read_only:
        drive["cache_type"] = "Writeback"  # A guest's flush reaches the host's disk.
    return f"/drives/{name}", drive


def _relative(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path
