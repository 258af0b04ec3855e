"""Where the parts of a guest are found: our own programs in the package, the kernel on the host.

Nothing is downloaded or installed here. What is missing is an error that says how to get it.
"""

import importlib.resources
import os
from pathlib import Path
from typing import Final

from ramet.boot.kernel import KernelSource
from ramet.core.errors import NotFound

GUEST_PROGRAM: Final = "ramet-guest"
PAGER_PROGRAM: Final = "ramet-pager"
WRITEWATCH_LIBRARY: Final = "libramet_writewatch.so"

_KERNEL_PATTERN: Final = "vmlinuz-*-cloud-amd64"
_KERNEL_REMEDY: Final = (
    "apt-get install linux-image-cloud-amd64, or name a kernel package (.deb) in the setting kernel_package"
)


class ProgramNotBuilt(NotFound):
    """One of our native programs is not in this installation."""

    code = "program_not_built"


class KernelNotFound(NotFound):
    """No kernel for guests was found on this host."""

    code = "kernel_not_found"


def native_program(name: str) -> Path:
    """Return the path of our program or library `name`, e.g. "ramet-guest".

    Raises:
        ProgramNotBuilt: the package was installed without it.
    """
    path = Path(str(importlib.resources.files("ramet").joinpath("_native", name)))
    if not os.access(path, os.X_OK):
        raise ProgramNotBuilt(
            f"{name} is not part of this installation",
            remedy="run ./run setup in a checkout, or install the wheel again",
            program=name,
        )
    return path


def find_installed_kernel(root: Path = Path("/")) -> KernelSource:
    """Return the newest cloud kernel installed under `root` that has its modules.

    Raises:
        KernelNotFound: there is none.
    """
    images = sorted((root / "boot").glob(_KERNEL_PATTERN), key=lambda path: _version_key(path.name))
    for vmlinuz in reversed(images):
        release = vmlinuz.name.removeprefix("vmlinuz-")
        modules = root / "lib" / "modules" / release
        if (modules / "modules.dep").exists():
            return KernelSource(release, vmlinuz, modules)
    raise KernelNotFound("no kernel for guests is installed", remedy=_KERNEL_REMEDY)


def _version_key(name: str) -> list[tuple[int, str]]:
    """Order names so that 6.1.0-9 comes before 6.1.0-10."""
    parts = "".join(c if c.isdigit() else f" {c} " for c in name).split()
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
