"""A machine as a configuration: what every Cloud Hypervisor of ours has, in one fixed order.

All that belongs to one VM alone is named relative to its folder, which is the VMM's working directory. A
snapshot therefore names nothing of its source but the kernel, the root and the network card.

Order and options are the device model, an ABI: whoever changes them raises `DEVICE_MODEL`.
"""

from pathlib import Path
from typing import Any, Final

from ramet.vmm.cloud_hypervisor.size import PLUG_ALIGN_BYTES
from ramet.vmm.port import Machine, Nic, VmmUnsupported
from ramet.vmm.raw_overlay import OVERLAY_LINK, volume_link
from ramet.vmm.token_bucket import bucket_of, disk_bucket_of
from ramet.wire.vsock import SOCKET_SUFFIX

DEVICE_MODEL: Final = 2
API_SOCKET: Final = "api.sock"
API_LOCK: Final = f"{API_SOCKET}.lock"
"""Made and left by 53 and newer; another user cannot open it."""
AGENT_SOCKET: Final = f"agent{SOCKET_SUFFIX}"
CONSOLE: Final = "console.log"
LOG: Final = "vmm.log"
EVENTS: Final = "events.json"
"""What happens to the guest, told by the VMM: a reset, above all, which does not end it."""
NIC: Final = "nic"
LIMITER: Final = "rate_limiter_config"
ZONE: Final = "ram"
"""The one piece of memory; it has a name of its own because only a named one can be of a file."""
VOLUME_COUNT_MAX: Final = 8
VCPU_COUNT_MAX: Final = 254
"""More take an APIC that only some versions build, see vmm/src/config.rs."""
GUEST_CID: Final = 3
"""The same for all: a guest is reached through its own socket, never by this number."""
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet panic=-1 net.ifnames=0 ipv6.disable=1 memhp_default_state=online_movable"
)
"""`memhp_default_state`: memory that is plugged in is used at once, and can be taken away again."""


def demand_buildable(machine: Machine) -> None:
    """Check that Cloud Hypervisor can build `machine`.

    Raises:
        VmmUnsupported: it has no such device.
    """
    if len(machine.volumes) > VOLUME_COUNT_MAX:
        count = len(machine.volumes)
        raise VmmUnsupported(
            f"an instance on cloud-hypervisor has {VOLUME_COUNT_MAX} volumes at most, not {count}",
            remedy="use fewer volumes, or another hypervisor",
        )
    if machine.plug_bytes % PLUG_ALIGN_BYTES:
        raise VmmUnsupported(
            f"cloud-hypervisor has room for more memory in pieces of {PLUG_ALIGN_BYTES >> 20} MiB,"
            f" not for {machine.plug_bytes} bytes",
            remedy=f"ask for a multiple of {PLUG_ALIGN_BYTES >> 20}MB",
        )
    if not machine.vcpu_count <= _vcpu_count_max(machine) <= VCPU_COUNT_MAX:
        raise VmmUnsupported(
            f"an instance on cloud-hypervisor has room for {machine.vcpu_count} to {VCPU_COUNT_MAX} vCPUs,"
            f" not for {machine.vcpu_count_max or machine.vcpu_count}",
            remedy="ask for room for fewer, and for no fewer than it boots with",
        )
    if machine.nic is not None and machine.nic.limits is not None:
        limits = machine.nic.limits
        if limits.download_bytes_per_s != limits.upload_bytes_per_s:
            raise VmmUnsupported(
                "cloud-hypervisor has one limit for both directions of a network card, not one for each",
                remedy="give both the same limit, or none and have its TAP shaped",
            )
    disks = (machine.overlay, *machine.volumes)
    if any(layer_format != "raw" for disk in disks for _, layer_format in disk.layers):
        raise VmmUnsupported(
            "cloud-hypervisor is given raw disks only, and this one has qcow2 layers",
            remedy="use hypervisor qemu",
        )


def config_of(machine: Machine) -> dict[str, Any]:
    """Return the body of `vm.create`; the network card comes after it, with its descriptor."""
    zone: dict[str, Any] = {"id": ZONE, "size": machine.memory_bytes}
    if machine.plug_bytes:
        zone["hotplug_size"] = machine.plug_bytes
    return {
        "cpus": {
            "boot_vcpus": machine.vcpu_count,
            "max_vcpus": _vcpu_count_max(machine),
            "nested": False,
        },
        "memory": {"size": 0, "hotplug_method": "VirtioMem", "zones": [zone]},
        "payload": payload_of(machine) | {"cmdline": KERNEL_ARGUMENTS},
        "disks": disks_of(machine),
        "rng": {"src": "/dev/urandom"},
        "balloon": {"size": 0, "deflate_on_oom": True},
        "serial": {"mode": "File", "file": CONSOLE},
        "console": {"mode": "Off"},
        "vsock": {"cid": GUEST_CID, "socket": AGENT_SOCKET},
    }


def disks_of(machine: Machine) -> list[dict[str, Any]]:
    """Return its disks, in their order."""
    disks = [
        _disk("root", machine.root, is_read_only=True),
        _disk("overlay", Path(OVERLAY_LINK), is_read_only=False),
        _disk("config", _relative(machine.config, machine.folder), is_read_only=True),
        *(
            _disk(f"volume{index}", Path(volume_link(index)), is_read_only=volume.is_read_only)
            for index, volume in enumerate(machine.volumes)
        ),
    ]
    rate = machine.disk_io_bytes_per_s
    if rate is not None:
        disks = [disk | {LIMITER: {"bandwidth": disk_bucket_of(rate)}} for disk in disks]
    return disks


def payload_of(machine: Machine) -> dict[str, str]:
    """Return which files it boots from."""
    return {"kernel": str(machine.kernel), "initramfs": str(machine.initramfs)}


def card_of(nic: Nic) -> dict[str, Any]:
    """Return the body of `vm.add-net`; a TAP without a name goes along with it as a descriptor."""
    card: dict[str, Any] = {"id": NIC, "mac": nic.mac}
    if nic.limits is not None and nic.limits.download_bytes_per_s is not None:
        # Of what is told once, each direction has a bucket of its own.
        card[LIMITER] = {"bandwidth": bucket_of(nic.limits.download_bytes_per_s)}
    return card if nic.tap_fd >= 0 else card | {"tap": nic.tap_name}


def _vcpu_count_max(machine: Machine) -> int:
    return machine.vcpu_count if machine.vcpu_count_max is None else machine.vcpu_count_max


def _disk(name: str, path: Path, *, is_read_only: bool) -> dict[str, Any]:
    return {
        "id": name,
        "serial": name,
        "path": str(path),
        "readonly": is_read_only,
        "image_type": "Raw",  # Or it is whatever the guest has made its head look like.
    }


def _relative(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path
