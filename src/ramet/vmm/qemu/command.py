"""A machine as a command line of QEMU: what every board has, in one fixed order.

Order and options belong to the device model of a board as its places do: see `ramet.vmm.qemu.board`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.vmm.port import AGENT_PORT_NAME, OUTPUT_PORT_NAME, DiskImage, Machine, VmmFailed
from ramet.vmm.qemu.board import Board

TRANSLATION_CACHE_MIB: Final = 32  # Per TCG process; QEMU's default reserves a gigabyte.
OVERLAY_DEVICE: Final = "overlay"

KERNEL_ARGUMENTS: Final = "console=ttyS0 quiet panic=-1 net.ifnames=0 ipv6.disable=1"
"""IPv6 is off: after a fork its link-local address would keep the parent's MAC."""

NAME_PREFIX: Final = "ramet-"
LAYER_NODE_PREFIX: Final = "n-"
BOOTED_MEMORY: Final = "memory-backend-ram"
"""The kind of memory of a guest that was booted: pages that nobody else has."""
CPUINFO: Final = Path("/proc/cpuinfo")


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


def overlay_node(image: DiskImage, name: str | None = None) -> dict[str, object]:
    """Return the chain of `image` as one nested block node; `name` is the top's, by default its layer's."""
    node: dict[str, object] | None = None
    for index, (path, layer_format) in reversed(list(enumerate(image.layers))):
        writable = index == 0 and not image.is_read_only
        layer: dict[str, object] = {
            "driver": layer_format,
            "node-name": name if name is not None and index == 0 else node_name(path),
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
    board: Board,
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
            f"{board.machine_type},{board.machine_options},memory-backend=ram,suppress-vmdesc=on",
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
        arguments += ["-object", f"{BOOTED_MEMORY},{memory}"]
        arguments += ["-kernel", str(machine.kernel), "-initrd", str(machine.initramfs)]
        arguments += ["-append", _kernel_arguments(board, is_emulated=emulated)]
    else:
        arguments += ["-object", f"memory-backend-file,{memory},share=off,mem-path={memory_path}"]
        arguments += ["-incoming", "defer"]
    return arguments + _devices(board, machine, sockets) + [*board.arguments, *_volumes(board, machine)]


def _kernel_arguments(board: Board, *, is_emulated: bool) -> str:
    arguments = [KERNEL_ARGUMENTS, board.kernel_arguments]
    if is_emulated and board.needs_tsc_frequency:
        # About half of the boots would hang calibrating it: the board has no other clock to do it by.
        # It is one counter for all processors; taken for unreliable, time would go by the tick, 4 ms.
        arguments.append(f"tsc_early_khz={read_tsc_khz()} tsc=reliable")
    return " ".join(filter(None, arguments))


def read_tsc_khz() -> int:
    """Return the frequency of the host's time stamp counter, which an emulated guest is shown, in kHz.

    Raises:
        VmmFailed: the kernel does not tell.
    """
    found = re.search(r"^cpu MHz\s*:\s*([0-9.]+)", CPUINFO.read_text(), re.MULTILINE)
    if found is None:
        raise VmmFailed("this host does not tell its processors' frequency", remedy="use hypervisor qemu")
    return round(float(found[1]) * 1000)


def _devices(board: Board, machine: Machine, sockets: Sockets) -> list[str]:
    folder = machine.folder
    arguments = _pairs(
        ("-chardev", f"file,id=console,path={folder / 'console.log'},append=on"),
        ("-device", "isa-serial,chardev=console"),
        ("-device", board.device("serial", "ports", "id=ports,max_ports=4")),
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
    nic = f"netdev=nic,mac={mac},guest_announce=off{board.nic_options}"
    return arguments + _pairs(
        ("-device", board.device("net", "nic", nic)),
        *_disk(board, "root", _read_only("root", machine.root)),
        *_disk(board, OVERLAY_DEVICE, overlay_node(machine.overlay)),
        *_disk(board, "config", _read_only("config", machine.config)),
        ("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        ("-device", board.device("rng", "entropy", "rng=entropy")),
        ("-device", board.device("balloon", "balloon", "id=balloon")),
    )


def _volumes(board: Board, machine: Machine) -> list[str]:
    names = [f"volume{index}" for index in range(len(machine.volumes))]
    nodes = [overlay_node(volume, name) for name, volume in zip(names, machine.volumes, strict=True)]
    disks = [_disk(board, name, node) for name, node in zip(names, nodes, strict=True)]
    return _pairs(*(pair for disk in disks for pair in disk))


def _read_only(name: str, path: Path) -> dict[str, object]:
    return {"driver": "raw", "node-name": name, "read-only": True, "file": file_node(path, writable=False)}


def _disk(board: Board, serial: str, node: dict[str, object]) -> Sequence[tuple[str, str]]:
    options = f"id=disk-{serial},drive={node['node-name']},serial={serial}"
    return (("-blockdev", json.dumps(node)), ("-device", board.device("blk", serial, options)))


def _pairs(*pairs: tuple[str, str]) -> list[str]:
    return [part for pair in pairs for part in pair]
