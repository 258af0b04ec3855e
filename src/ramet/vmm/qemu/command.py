"""The device model as a command line: an ABI.

A capture can be loaded only by a QEMU with the very devices, at the very addresses, of the one it was
taken from. So the list below, its addresses and the versioned machine type are fixed, under the number
`vmm.port.DEVICE_MODEL`; whoever changes a line of it raises that number.

| address | device |
|---|---|
| isa | serial port (the kernel's console) |
| 0x2 | virtio-serial: port 1 `ramet.agent`, port 2 `ramet.output` |
| 0x3 | virtio-net |
| 0x4, 0x5, 0x6 | virtio-blk `root` (read-only), `overlay`, `config` (read-only) |
| 0x7 | virtio-rng |
| 0x8 | virtio-balloon |
| 0x9-0xc | four empty PCIe root ports, for volumes |
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.vmm.port import AGENT_PORT_NAME, OUTPUT_PORT_NAME, DiskImage, Machine

MACHINE_TYPE: Final = "pc-q35-7.2"
VOLUME_PORT_COUNT: Final = 4
TRANSLATION_CACHE_MIB: Final = 32  # Per TCG process; QEMU's default reserves a gigabyte.
OVERLAY_DEVICE: Final = "overlay"

KERNEL_ARGUMENTS: Final = "console=ttyS0 quiet panic=-1 net.ifnames=0 ipv6.disable=1"
"""IPv6 is off: after a fork its link-local address would keep the parent's MAC."""

NAME_PREFIX: Final = "ramet-"
LAYER_NODE_PREFIX: Final = "n-"


@dataclass(frozen=True, slots=True)
class Sockets:
    """Descriptors of listening unix sockets, handed to QEMU already bound."""

    monitor_fd: int
    agent_fd: int


def node_name(layer: Path) -> str:
    """Return the name of the block node of `layer`; QEMU allows 31 characters."""
    name = f"{LAYER_NODE_PREFIX}{layer.stem}"
    assert len(name) <= 31, name
    return name


def file_node(layer: Path, *, writable: bool) -> dict[str, object]:
    """Return the protocol node below a layer.

    `drop-cache` off: on load QEMU would otherwise throw the image, shared by all guests, out of the page
    cache (7.2). Frozen layers are not locked: children open them while the source still writes to one.
    """
    node: dict[str, object] = {"driver": "file", "filename": str(layer), "drop-cache": False}
    if not writable:
        node["locking"] = "off"
    return node


def overlay_node(image: DiskImage) -> dict[str, object]:
    """Return the chain of `image` as one nested block node."""
    node: dict[str, object] | None = None
    for index, (path, layer_format) in reversed(list(enumerate(image.layers))):
        writable = index == 0
        layer: dict[str, object] = {
            "driver": layer_format,
            "node-name": node_name(path),
            "read-only": not writable,
            "discard": "unmap",
            "file": file_node(path, writable=writable),
        }
        if layer_format == "qcow2":
            layer["backing"] = node
        node = layer
    assert node is not None, "a disk has at least one layer"
    return node


def command_line(
    program: Path,
    machine: Machine,
    sockets: Sockets,
    *,
    accelerator: str,
    memory_path: str | None,
) -> list[str]:
    """Return the arguments that start `machine`.

    With `memory_path`, the memory is a private mapping of that file and QEMU waits for a capture to load;
    without, it boots.
    """
    emulated = accelerator == "tcg"
    memory = f"id=ram,size={machine.memory_bytes}"
    arguments: list[str] = [
        str(program),
        *("-name", f"guest={NAME_PREFIX}{machine.instance}"),
        *(
            "-M",
            f"{MACHINE_TYPE},usb=off,sata=off,smbus=off,vmport=off,memory-backend=ram,suppress-vmdesc=on",
        ),
        *("-accel", f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}" if emulated else "kvm"),
        *("-cpu", "max" if emulated else "host"),
        *("-smp", str(machine.vcpu_count)),
        *("-m", f"{machine.memory_bytes >> 20}M"),
        *("-nodefaults", "-no-user-config", "-nographic", "-no-reboot"),
        *("-global", "migration.send-configuration=off", "-global", "migration.announce-rounds=0"),
        *("-chardev", f"socket,id=monitor,fd={sockets.monitor_fd},server=on,wait=off"),
        *("-mon", "chardev=monitor,mode=control"),
    ]
    if memory_path is None:
        arguments += ["-object", f"memory-backend-ram,{memory}"]
        arguments += ["-kernel", str(machine.kernel), "-initrd", str(machine.initramfs)]
        arguments += ["-append", KERNEL_ARGUMENTS]
    else:
        arguments += ["-object", f"memory-backend-file,{memory},share=off,mem-path={memory_path}"]
        arguments += ["-incoming", "defer"]
    return arguments + _devices(machine, sockets)


def _devices(machine: Machine, sockets: Sockets) -> list[str]:
    folder = machine.folder
    arguments = _pairs(
        ("-chardev", f"file,id=console,path={folder / 'console.log'},append=on"),
        ("-device", "isa-serial,chardev=console"),
        ("-device", "virtio-serial-pci,id=ports,bus=pcie.0,addr=0x2,max_ports=4"),
        ("-chardev", f"socket,id=agent,fd={sockets.agent_fd},server=on,wait=off"),
        ("-device", f"virtserialport,bus=ports.0,nr=1,chardev=agent,name={AGENT_PORT_NAME}"),
        ("-chardev", f"file,id=output,path={folder / 'output.log'},append=on"),
        ("-device", f"virtserialport,bus=ports.0,nr=2,chardev=output,name={OUTPUT_PORT_NAME}"),
    )
    if machine.nic is None:
        # The device is part of the model; without a network it hangs on a hub of its own.
        arguments += _pairs(("-netdev", "hubport,id=nic,hubid=0"))
        mac = "02:00:00:00:00:01"
    else:
        arguments += _pairs(("-netdev", f"tap,id=nic,fd={machine.nic.tap_fd},vhost=off"))
        mac = machine.nic.mac
    # guest_announce off: a restored guest would announce its parent's address with its parent's MAC.
    arguments += _pairs(
        ("-device", f"virtio-net-pci,netdev=nic,mac={mac},romfile=,guest_announce=off,bus=pcie.0,addr=0x3"),
        *_disk("root", "0x4", _read_only("root", machine.root)),
        *_disk(OVERLAY_DEVICE, "0x5", overlay_node(machine.overlay)),
        *_disk("config", "0x6", _read_only("config", machine.config)),
        ("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        ("-device", "virtio-rng-pci,rng=entropy,bus=pcie.0,addr=0x7"),
        ("-device", "virtio-balloon-pci,id=balloon,bus=pcie.0,addr=0x8"),
    )
    for index in range(VOLUME_PORT_COUNT):
        place = f"bus=pcie.0,addr={9 + index:#x},chassis={index + 1},slot={index + 1}"
        arguments += ["-device", f"pcie-root-port,id=volume{index},{place}"]
    return arguments


def _read_only(name: str, path: Path) -> dict[str, object]:
    return {"driver": "raw", "node-name": name, "read-only": True, "file": file_node(path, writable=False)}


def _disk(serial: str, address: str, node: dict[str, object]) -> Sequence[tuple[str, str]]:
    device = (
        f"virtio-blk-pci,id=disk-{serial},drive={node['node-name']},serial={serial},bus=pcie.0,addr={address}"
    )
    return (("-blockdev", json.dumps(node)), ("-device", device))


def _pairs(*pairs: tuple[str, str]) -> list[str]:
    return [part for pair in pairs for part in pair]
