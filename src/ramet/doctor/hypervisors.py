"""Which hypervisors this host can use, which of them is the default, and why not the others."""

from collections.abc import Iterator, Mapping
from typing import Final

from ramet.doctor.accelerator import kvm_refusal
from ramet.doctor.findings import Finding, fail, info, ok
from ramet.doctor.host import HostView
from ramet.doctor.programs import QEMU, QEMU_MACHINE_TYPE, QEMU_VERSION_MIN, find_version
from ramet.doctor.subject import Subject

FIRECRACKER_VERSION_MIN: Final = (1, 10)
CLOUD_HYPERVISOR_VERSION_MIN: Final = (51, 0)
CHECK: Final = "hypervisors"
_INSTALL: Final = "apt-get install qemu-system-x86"


def check_hypervisors(subject: Subject, host: HostView) -> Iterator[Finding]:
    """Say which can be used, and which an instance that names none gets."""
    refusals = find_refusals(subject, host)
    usable = [name for name, why_not in refusals.items() if why_not is None]
    default = subject.default_hypervisor or next(iter(usable), next(iter(refusals)))
    if default in usable:
        others = ", ".join(name for name in usable if name != default) or "none"
        message = f"instances that name none get {default} (hypervisor.default); also usable: {others}"
        yield ok(CHECK, "hypervisors", message)
    else:
        why_not = refusals.get(default, "there is no hypervisor of that name")
        yield fail(
            CHECK,
            "default_hypervisor_unusable",
            f"instances that name none get {default}, which cannot be used: {why_not}",
            f"set hypervisor.default to {' or '.join(usable)}" if usable else _INSTALL,
        )
    for name, why_not in refusals.items():
        if why_not is not None and name != default:
            yield info(CHECK, "hypervisor_unusable", f"{name} cannot be used: {why_not}")


def find_refusals(subject: Subject, host: HostView) -> Mapping[str, str | None]:
    """Return why each hypervisor cannot be used here, None if it can."""
    qemu, microvm = _refuse_qemu(host)
    return {
        "qemu": qemu,
        "qemu-microvm": microvm,
        "firecracker": _refuse(subject.firecracker_program, "Firecracker", FIRECRACKER_VERSION_MIN, host),
        "cloud-hypervisor": _refuse(
            subject.cloud_hypervisor_program, "Cloud Hypervisor", CLOUD_HYPERVISOR_VERSION_MIN, host
        ),
    }


def _refuse_qemu(host: HostView) -> tuple[str | None, str | None]:
    told = host.run(QEMU, "--version")
    version = find_version(told.text) if told is not None else None
    if version is None:
        missing = f"{QEMU} is not installed or does not answer"
        return missing, missing
    if version[:2] < QEMU_VERSION_MIN:
        old = f"QEMU {_shown(version)} is older than {_shown(QEMU_VERSION_MIN)}"
        return old, old
    machines = host.run(QEMU, "-machine", "help")
    offered = {line.split()[0] for line in machines.text.splitlines() if line.strip()} if machines else set()
    lacks = {name: f"this QEMU has no machine type {name}" for name in (QEMU_MACHINE_TYPE, "microvm")}
    q35, microvm = (None if name in offered else why_not for name, why_not in lacks.items())
    return q35, microvm


def _refuse(program: str, name: str, version_min: tuple[int, int], host: HostView) -> str | None:
    """Return why a VMM that needs KVM cannot be used, None if it can."""
    told = host.run(program, "--version")
    version = find_version(told.text) if told is not None else None
    if version is None:
        return f"{program} is not installed or does not answer"
    if version[:2] < version_min:
        return f"{name} {_shown(version)} is older than {_shown(version_min)}"
    return kvm_refusal(host)


def _shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
