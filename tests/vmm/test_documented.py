"""The tables of docs/hypervisors.md and docs/firecracker.md are what the drivers say of themselves."""

from pathlib import Path

from ramet.vmm.cloud_hypervisor import build as cloud_build
from ramet.vmm.cloud_hypervisor import features as cloud_features
from ramet.vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from ramet.vmm.firecracker.build import DEVICE_MODEL, VOLUME_COUNT_MAX
from ramet.vmm.firecracker.driver import FirecrackerDriver
from ramet.vmm.firecracker.features import FEATURES, OLDEST
from ramet.vmm.port import LiveFork
from ramet.vmm.qemu.board import BOARDS
from ramet.vmm.qemu.driver import QemuDriver
from ramet.wire.vsock import AGENT_PORT

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "hypervisors.md"
FIRECRACKER_PAGE = DOCS / "firecracker.md"


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


def render_firecracker() -> list[str]:
    features = [["feature", "since", "what it is for"], ["---"] * 3]
    features += [[f"`{each.name}`", ".".join(map(str, each.since)), each.use] for each in FEATURES]
    limits = [
        ["", f"`{FirecrackerDriver.name}`"],
        ["---"] * 2,
        ["device model", str(DEVICE_MODEL)],
        ["devices", "virtio-mmio"],
        ["accelerator", FirecrackerDriver.accelerator],
        ["live fork", _yes(issubclass(FirecrackerDriver, LiveFork))],
        ["places for volumes", str(VOLUME_COUNT_MAX)],
        ["agent", f"vsock, port {AGENT_PORT}"],
    ]
    return ["".join(f"| {' | '.join(row)} |\n" for row in rows) for rows in (features, limits)]


def test_the_tables_of_firecracker_are_current() -> None:
    page = FIRECRACKER_PAGE.read_text()
    for table in render_firecracker():
        assert table in page, f"put this into {FIRECRACKER_PAGE.name}:\n{table}"
    assert f"{'.'.join(map(str, OLDEST))} or newer" in page


def test_the_tables_of_cloud_hypervisor_are_current() -> None:
    features = [
        f"| `{each.name}` | {'.'.join(map(str, each.since))} | {each.use} |"
        for each in cloud_features.FEATURES
    ]
    limits = [
        f"|  | `{CloudHypervisorDriver.name}` |",
        "| --- | --- |",
        f"| device model | {cloud_build.DEVICE_MODEL} |",
        "| devices | PCI |",
        f"| accelerator | {CloudHypervisorDriver.accelerator} |",
        f"| live fork | {_yes(issubclass(CloudHypervisorDriver, LiveFork))} |",
        f"| places for volumes | {cloud_build.VOLUME_COUNT_MAX} |",
        f"| agent | vsock, port {AGENT_PORT} |",
    ]
    page = (DOCS / "cloud-hypervisor.md").read_text()
    for rows in (features, limits):
        assert "\n".join(rows) in page, rows
    assert f"{cloud_features.OLDEST[0]} or newer" in page
