"""What a guest boots from: the distribution's kernel, unpacked, and our initramfs."""

from ramet.boot.kernel import KernelSource, KernelToolFailed, KernelUnusable
from ramet.boot.kit import BootKit, KitDamaged, KitInputMissing, KitUnwritable, open_kit, prepare_kit
from ramet.boot.locate import (
    GUEST_PROGRAM,
    PAGER_PROGRAM,
    KernelNotFound,
    ProgramNotBuilt,
    find_installed_kernel,
    native_program,
)

__all__ = (
    "GUEST_PROGRAM",
    "PAGER_PROGRAM",
    "BootKit",
    "KernelNotFound",
    "KernelSource",
    "KernelToolFailed",
    "KernelUnusable",
    "KitDamaged",
    "KitInputMissing",
    "KitUnwritable",
    "ProgramNotBuilt",
    "find_installed_kernel",
    "native_program",
    "open_kit",
    "prepare_kit",
)
