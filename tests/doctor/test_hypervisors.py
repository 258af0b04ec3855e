"""Which hypervisors can be used, and which is the default."""

import pytest

from ramet.doctor.findings import Level
from ramet.doctor.hypervisors import check_hypervisors, find_refusals
from ramet.doctor.subject import Subject
from tests.doctor.made_host import MadeHost

QEMU = 'case "$1" in --version) echo "QEMU emulator version {version} (Debian)";; *) echo "{machines}";; esac'
MACHINES = "microvm  microvm (i386)\npc-q35-7.2  Standard PC"


def with_qemu(host: MadeHost, version: str = "7.2.22", machines: str = MACHINES) -> None:
    host.program("qemu-system-x86_64", QEMU.format(version=version, machines=machines))


def with_kvm(host: MadeHost) -> None:
    host.folder("/sys/module/kvm_intel")
    host.file("/dev/kvm")


def test_the_default_is_told_with_what_else_can_be_used(host: MadeHost) -> None:
    with_qemu(host)
    host.program("firecracker", "echo Firecracker v1.16.1")
    with_kvm(host)
    host.program("cloud-hypervisor", "echo cloud-hypervisor v53.0")
    (finding,) = check_hypervisors(Subject(), host.view())
    assert finding.level is Level.OK
    assert "none get qemu" in finding.message
    assert finding.message.endswith("also usable: qemu-microvm, firecracker, cloud-hypervisor")


def test_without_a_setting_the_default_is_the_first_that_can_be_used(host: MadeHost) -> None:
    host.program("cloud-hypervisor", "echo cloud-hypervisor v53.0")
    with_kvm(host)
    first, *_ = check_hypervisors(Subject(), host.view())
    assert first.level is Level.OK
    assert "none get cloud-hypervisor" in first.message
    first, *_ = check_hypervisors(Subject(default_hypervisor="qemu"), host.view())
    assert (first.code, first.remedy) == (
        "default_hypervisor_unusable",
        "set hypervisor.default to cloud-hypervisor",
    )


@pytest.mark.parametrize(
    ("hypervisor", "version", "module", "device", "reason"),
    [
        ("firecracker", None, "kvm_intel", True, "not installed"),
        ("firecracker", "v1.9.1", "kvm_intel", True, "1.9.1 is older than 1.10"),
        ("firecracker", "v1.16.1", "kvm_pvm", True, "paravirtual"),
        ("firecracker", "v1.16.1", None, True, "neither kvm_intel nor kvm_amd"),
        ("firecracker", "v1.16.1", "kvm_amd", False, "/dev/kvm is missing"),
        ("cloud-hypervisor", None, "kvm_intel", True, "not installed"),
        ("cloud-hypervisor", "v50.2", "kvm_intel", True, "50.2 is older than 51.0"),
        ("cloud-hypervisor", "v53.0", None, True, "neither kvm_intel nor kvm_amd"),
    ],
)
def test_why_a_vmm_that_needs_kvm_cannot_be_used_is_told(
    host: MadeHost, hypervisor: str, version: str | None, module: str | None, device: bool, reason: str
) -> None:
    with_qemu(host)
    if version is not None:
        host.program(hypervisor, f"echo {hypervisor} {version}")
    if module is not None:
        host.folder(f"/sys/module/{module}")
    if device:
        host.file("/dev/kvm")
    first, *others = check_hypervisors(Subject(), host.view())
    assert first.level is Level.OK
    assert {(each.code, each.level) for each in others} == {("hypervisor_unusable", Level.INFO)}
    (told,) = (each for each in others if each.message.startswith(hypervisor))
    assert reason in told.message


def test_a_default_that_cannot_be_used_fails_and_names_those_that_can(host: MadeHost) -> None:
    with_qemu(host, machines="pc-q35-7.2 PC")
    first, *_ = check_hypervisors(Subject(default_hypervisor="qemu-microvm"), host.view())
    assert (first.code, first.level) == ("default_hypervisor_unusable", Level.FAIL)
    assert "no machine type microvm" in first.message
    assert first.remedy == "set hypervisor.default to qemu"
    first, *_ = check_hypervisors(Subject(default_hypervisor="toy"), host.view())
    assert "no hypervisor of that name" in first.message


def test_a_host_with_none_is_told_what_to_install(host: MadeHost) -> None:
    first, *_ = check_hypervisors(Subject(), host.view())
    assert first.level is Level.FAIL
    assert first.remedy == "apt-get install qemu-system-x86"


def test_an_old_qemu_serves_neither_machine_type(host: MadeHost) -> None:
    with_qemu(host, version="6.2.0")
    refusals = find_refusals(Subject(), host.view())
    assert refusals["qemu"] == refusals["qemu-microvm"] == "QEMU 6.2.0 is older than 7.2"


def test_firecracker_may_lie_elsewhere(host: MadeHost) -> None:
    with_kvm(host)
    program = host.file("/opt/fc", "#!/bin/sh\necho Firecracker v1.13.2\n", 0o755)
    assert find_refusals(Subject(firecracker=str(program)), host.view())["firecracker"] is None
    assert find_refusals(Subject(), host.view())["firecracker"] is not None
