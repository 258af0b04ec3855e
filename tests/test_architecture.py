"""Who may import whom. The table is the design (docs, "Packages"); this test keeps the code inside it.

An entry without a dot allows a whole package, one with a dot that module alone. Imports for type checking
only count: what a type names, a reader must know.
"""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "ramet"
EVERYTHING = frozenset({"*"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "wire": frozenset(),
    "linux": frozenset({"core"}),
    "wire_api": frozenset({"core"}),
    "telemetry": frozenset({"core"}),
    "store": frozenset({"core", "linux"}),
    "admission": frozenset({"core"}),
    "disks": frozenset({"core", "linux"}),
    "logs": frozenset({"core", "linux"}),
    "net": frozenset({"core", "linux", "telemetry"}),
    "pager": frozenset({"core", "linux"}),
    "vmm": frozenset({"core", "linux", "wire"}),  # wire: the fake has a guest of its own.
    "boot": frozenset({"core", "linux"}),
    "images": frozenset({"core", "linux", "store"}),
    "volumes": frozenset(
        {
            "core",
            "store",
            # An archive from a stranger is unpacked as a layer is.
            "images.blobs",
            "images.errors",
            "images.limits",
            "images.tarstream",
            "images.unpack",
        }
    ),
    "guest": frozenset({"core", "linux", "wire"}),
    "snapshots": frozenset({"core", "linux", "store", "disks", "pager", "telemetry", "vmm.port"}),
    "instance": frozenset({"core", "store"}),
    "policies": frozenset({"core", "instance.fleet_types"}),
    "effects": frozenset(
        {
            "core",
            "admission",
            "instance",
            "images",
            "disks",
            "net",
            "guest",
            "logs",
            "snapshots",
            "store",
            "telemetry",
            "volumes",
            "boot",
            "linux.plain_file",  # The folder of an instance is its VMM's, too.
            "linux.process",  # What an instance uses is what its VMM's process does.
            "pager",
            "vmm.port",
            "wire.boot_config",
            "wire.messages",
            "wire.vsock",
        }
    ),
    "setup": frozenset({"core", "linux", "wire_api.scopes"}),
    "doctor": frozenset({"core", "linux", "net.bridge", "net.errors", "boot.locate"}),
    "api": frozenset(
        {
            "core",
            "admission",
            "wire_api",
            "instance",
            "images",
            "policies",
            "snapshots",
            "telemetry",
            "volumes.errors",
        }
    ),
    "client": frozenset({"core", "wire_api"}),
    "cli": frozenset({"core", "client", "wire_api"}),
    "daemon": EVERYTHING,
}
# Only the composition root may name one.
DRIVERS = ("vmm.qemu", "vmm.firecracker", "vmm.cloud_hypervisor", "vmm.fake")
WIRING = "daemon/wiring.py"
FILES = sorted(path.relative_to(SRC) for path in SRC.rglob("*.py"))


def imports_of(source: str, modules: frozenset[str]) -> set[str]:
    """Return what of ours `source` imports, without the leading "ramet.".

    `from ramet.vmm import port` is an import of `vmm.port` where that is a module, of `vmm` otherwise.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name.removeprefix("ramet.") for name in found if name.startswith("ramet.")}


def all_modules() -> frozenset[str]:
    names: set[str] = set()
    for path in FILES:
        parts = ("ramet", *path.with_suffix("").parts)
        names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return frozenset(names)


def is_within(name: str, entry: str) -> bool:
    return name == entry or name.startswith(f"{entry}.")


def violations(path: Path, source: str, modules: frozenset[str]) -> set[str]:
    """Return what `source`, standing at `path` below src/ramet, imports and may not."""
    package = path.parts[0]
    allowed = MAY_IMPORT[package] | {package}
    used = imports_of(source, modules)
    forbidden = {
        name for name in used if "*" not in allowed and not any(is_within(name, entry) for entry in allowed)
    }
    if path.as_posix() != WIRING:
        forbidden |= {
            name
            for name in used
            for driver in DRIVERS
            if is_within(name, driver) and not path.as_posix().startswith(driver.replace(".", "/"))
        }
    return forbidden


@pytest.mark.parametrize("path", [path for path in FILES if len(path.parts) > 1], ids=str)
def test_imports_follow_the_table(path: Path) -> None:
    forbidden = violations(path, (SRC / path).read_text(), all_modules())
    assert not forbidden, f"{path} may not import {sorted(forbidden)}"


def test_every_package_stands_in_the_table() -> None:
    packages = {path.parts[0] for path in FILES if len(path.parts) > 1}
    assert packages <= MAY_IMPORT.keys()


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("net/slots.py", "from ramet import images", {"images"}),
        ("net/slots.py", "import ramet.images.catalog", {"images.catalog"}),
        ("net/slots.py", "if TYPE_CHECKING:\n    from ramet.store import records", {"store"}),
        ("net/slots.py", "def f():\n    from ramet.vmm.port import Driver", {"vmm.port"}),
        ("net/slots.py", "from ramet.core.ids import InstanceId\nfrom ramet.net import bridge", set()),
        ("effects/boot.py", "from ramet.vmm import port\nfrom ramet.vmm.port import Driver", set()),
        ("effects/boot.py", "from ramet.vmm import qemu", {"vmm.qemu"}),
        ("vmm/fake/driver.py", "from ramet.vmm.qemu import Command", {"vmm.qemu"}),
        ("vmm/fake/driver.py", "from ramet.vmm.fake.machine import Machine", set()),
        ("daemon/main.py", "from ramet.vmm.qemu import driver", {"vmm.qemu"}),
        ("daemon/wiring.py", "from ramet.vmm.qemu import driver", set()),
    ],
)
def test_the_rule_sees_each_way_to_import(path: str, source: str, found: set[str]) -> None:
    modules = frozenset({"ramet.vmm.port", "ramet.vmm.qemu", "ramet.images", "ramet.store"})
    assert violations(Path(path), source, modules) == found


def test_relative_imports_are_refused() -> None:
    with pytest.raises(AssertionError, match="relative import"):
        imports_of("from . import taps", frozenset())
