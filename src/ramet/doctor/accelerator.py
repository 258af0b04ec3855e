"""Whether guests run on the processor itself or are emulated.

/dev/kvm alone proves nothing: a paravirtual KVM (kvm_pvm) opens and answers, and boots no stock kernel. So
the module of the hardware is asked for, as the driver does.
"""

import os
from collections.abc import Iterator

from ramet.doctor.findings import Finding, ok, warn
from ramet.doctor.host import HostView
from ramet.doctor.subject import Subject

CHECK = "accelerator"
_EMULATED = "guests are emulated in software, some ten times slower"
_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}


def check_accelerator(_: Subject, host: HostView) -> Iterator[Finding]:
    """Say which accelerator guests get, and why not KVM."""
    loaded = [name for name in _MODULES.values() if host.exists(f"/sys/module/{name}")]
    flags = set(_cpu_flags(host))
    device = host.path("/dev/kvm")
    if loaded and not host.exists("/dev/kvm"):
        yield warn(
            CHECK,
            "kvm_device_missing",
            f"{loaded[0]} is loaded but /dev/kvm is missing: {_EMULATED}",
            "mknod /dev/kvm c 10 232; in a container: add --device /dev/kvm",
        )
    elif loaded and not os.access(device, os.R_OK | os.W_OK):
        yield warn(
            CHECK,
            "kvm_forbidden",
            "/dev/kvm may not be opened by this user; the daemon runs as root",
            "sudo ramet doctor",
        )
    elif loaded:
        yield ok(CHECK, "kvm", f"KVM works, by {loaded[0]}")
    elif host.exists("/sys/module/kvm_pvm"):
        yield warn(
            CHECK,
            "kvm_paravirtual",
            f"/dev/kvm is a paravirtual KVM (kvm_pvm), which boots no stock kernel: {_EMULATED}",
            "use a machine with nested virtualisation, or bare metal",
        )
    elif flags & _MODULES.keys():
        module = next(name for flag, name in _MODULES.items() if flag in flags)
        yield warn(
            CHECK,
            "kvm_not_loaded",
            f"the processor can virtualise, but {module} is not loaded: {_EMULATED}",
            f"modprobe {module}",
        )
    else:
        yield warn(
            CHECK,
            "kvm_unavailable",
            f"this processor offers no virtualisation: {_EMULATED}",
            "switch it on in the firmware, or use a machine with nested virtualisation",
        )


def kvm_refusal(host: HostView) -> str | None:
    """Return why a VMM that needs KVM cannot boot a stock kernel here, None if it can."""
    if not any(host.exists(f"/sys/module/{name}") for name in _MODULES.values()):
        if host.exists("/sys/module/kvm_pvm"):
            return "it needs KVM, and that of this host is a paravirtual one, which boots no stock kernel"
        return "it needs KVM, and neither kvm_intel nor kvm_amd is loaded"
    if not os.access(host.path("/dev/kvm"), os.R_OK | os.W_OK):
        return "it needs KVM, and /dev/kvm is missing or may not be opened by this user"
    return None


def _cpu_flags(host: HostView) -> list[str]:
    for line in (host.read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("flags"):
            return line.partition(":")[2].split()
    return []
