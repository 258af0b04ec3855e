"""The table of docs/hypervisors.md is what the boards say of themselves."""

from pathlib import Path

from ramet.vmm.port import LiveFork
from ramet.vmm.qemu.board import BOARDS
from ramet.vmm.qemu.driver import QemuDriver

PAGE = Path(__file__).parents[2] / "docs" / "hypervisors.md"


def render() -> str:
    rows = [
        ["", *(f"`{board.name}`" for board in BOARDS)],
        ["---"] * (len(BOARDS) + 1),
        ["machine type", *(f"`{board.machine_type}`" for board in BOARDS)],
        ["devices", *("PCI" if board.transport == "pci" else "virtio-mmio" for board in BOARDS)],
        ["device model", *(str(board.device_model) for board in BOARDS)],
        ["live fork", *(_yes(issubclass(QemuDriver, LiveFork)) for _ in BOARDS)],
        ["places for volumes", *(str(board.volume_count_max) for board in BOARDS)],
        ["places that can be plugged hot", *(_yes(board.transport == "pci") for board in BOARDS)],
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def test_the_table_of_hypervisors_is_current() -> None:
    assert render() in PAGE.read_text(), f"put this into {PAGE.name}:\n{render()}"
