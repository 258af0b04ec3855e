"""Whether this host's processors can run a guest's kernel."""

import os
from pathlib import Path
from typing import Final

DEVICE: Final = Path("/dev/kvm")
_HARDWARE: Final = ("kvm_intel", "kvm_amd")


def runs_stock_kernels() -> bool:
    """Tell whether there is a KVM that can run a stock kernel, and we may use it.

    /dev/kvm may open and still be a paravirtual one (kvm_pvm), under which no stock kernel boots; so the
    hardware's own module is asked for.
    """
    has_hardware = any(Path("/sys/module", name).exists() for name in _HARDWARE)
    return has_hardware and os.access(DEVICE, os.R_OK | os.W_OK)
