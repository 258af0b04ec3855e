"""The boards that QEMU builds for us, each an ABI.

A capture can be loaded only by a QEMU with the very devices, at the very addresses, of the one it was
taken from. So what is here, and the order in `ramet.vmm.qemu.command`, is fixed under the board's number
`device_model`; whoever changes it raises that number. A board is data: what one can do more or less than
another is a value here, never a question asked elsewhere.

| | q35: PCI address | microvm: virtio-mmio slot |
|---|---|---|
| virtio-serial: port 1 `ramet.agent`, port 2 `ramet.output` | 0x2 | 0 |
| virtio-net | 0x3 | 1 |
| virtio-blk `root` (read-only), `overlay`, `config` (read-only) | 0x4, 0x5, 0x6 | 2, 3, 4 |
| virtio-rng | 0x7 | 5 |
| virtio-balloon | 0x8 | 6 |
| empty, for volumes | 0x9-0xc, PCIe root ports | 7 |

Both have an ISA serial port, the kernel's console.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Board:
    """One of QEMU's machine types, as we use it.

    Attributes:
        name: of its driver; what users call it.
        machine_type: the first word of `-M`, by which a process of this board is known.
        machine_options: the rest of `-M`.
        device_model: counted up with every change of the devices.
        transport: the end of every virtio device's name.
        places: where each device is plugged in.
        arguments: further ones that belong to the board.
        kernel_arguments: what the guest's kernel must be told of it.
        nic_options: further ones of the network card.
        needs_tsc_frequency: an emulated guest must be told its time stamp counter's frequency.
    """

    name: str
    machine_type: str
    machine_options: str
    device_model: int
    transport: Literal["pci", "device"]
    places: Mapping[str, str]
    arguments: tuple[str, ...]
    kernel_arguments: str
    nic_options: str
    needs_tsc_frequency: bool

    def device(self, kind: str, place: str, options: str) -> str:
        """Return the value of `-device` for a virtio device of this board."""
        return f"virtio-{kind}-{self.transport},{options},{self.places[place]}"

    @property
    def volume_count_max(self) -> int:
        """How many disks there is a place for beyond an instance's own."""
        return len(self.places) - len(_NAMES)


_NAMES: Final = ("ports", "nic", "root", "overlay", "config", "entropy", "balloon")
"""The devices of every instance, in the order of their places."""

_VOLUME_PORT_COUNT: Final = 4
_MMIO_SLOT_COUNT: Final = 8


def _volume_ports() -> tuple[str, ...]:
    ports: list[str] = []
    for index in range(_VOLUME_PORT_COUNT):
        place = f"bus=pcie.0,addr={9 + index:#x},chassis={index + 1},slot={index + 1}"
        ports += ["-device", f"pcie-root-port,id=volume{index},{place}"]
    return tuple(ports)


Q35: Final = Board(
    name="qemu",
    machine_type="pc-q35-7.2",
    machine_options="usb=off,sata=off,smbus=off,vmport=off",
    device_model=1,
    transport="pci",
    places={name: f"bus=pcie.0,addr={2 + index:#x}" for index, name in enumerate(_NAMES)}
    | {f"volume{index}": f"bus=volume{index}" for index in range(_VOLUME_PORT_COUNT)},
    arguments=_volume_ports(),
    kernel_arguments="",
    nic_options=",romfile=",
    needs_tsc_frequency=False,
)

MICROVM: Final = Board(
    name="qemu-microvm",
    machine_type="microvm",
    # ACPI names the virtio-mmio devices and powers off; without PIT, PIC and RTC an emulated guest does not
    # boot. A second IOAPIC would add slots, and is not there in every QEMU.
    machine_options="acpi=on,pit=on,pic=on,rtc=on,ioapic2=off,pcie=off,usb=off,isa-serial=off",
    device_model=1,
    transport="device",
    places={
        name: f"bus=virtio-mmio-bus.{index}"
        for index, name in zip(range(_MMIO_SLOT_COUNT), (*_NAMES, "volume0"), strict=True)
    },
    arguments=("-global", "virtio-mmio.force-legacy=off"),
    kernel_arguments="reboot=t",  # By triple fault: there is no keyboard controller, and ACPI's reset hangs.
    nic_options="",
    needs_tsc_frequency=True,
)

BOARDS: Final = (Q35, MICROVM)
