"""KVM is believed in only where the hardware's module is."""

import pytest

from ramet.doctor.accelerator import check_accelerator
from ramet.doctor.findings import Finding, Level
from ramet.doctor.subject import Subject
from tests.doctor.made_host import MadeHost


def only(host: MadeHost) -> Finding:
    [finding] = check_accelerator(Subject(), host.view())
    return finding


@pytest.mark.parametrize("module", ["kvm_intel", "kvm_amd"])
def test_kvm_with_the_modules_of_the_hardware_is_well(host: MadeHost, module: str) -> None:
    host.folder(f"/sys/module/{module}")
    host.file("/dev/kvm", mode=0o600)
    assert (only(host).code, only(host).level) == ("kvm", Level.OK)


def test_a_paravirtual_kvm_is_recognised_though_its_device_opens(host: MadeHost) -> None:
    host.folder("/sys/module/kvm_pvm")
    host.file("/dev/kvm", mode=0o600)
    host.file("/proc/cpuinfo", "processor: 0\nflags\t\t: fpu vmx\n")
    assert (only(host).code, only(host).level) == ("kvm_paravirtual", Level.WARN)
    assert "software" in only(host).message


@pytest.mark.parametrize(("flag", "module"), [("vmx", "kvm_intel"), ("svm", "kvm_amd")])
def test_a_module_that_is_not_loaded_is_named(host: MadeHost, flag: str, module: str) -> None:
    host.file("/proc/cpuinfo", f"processor\t: 0\nflags\t\t: fpu {flag} sse\n")
    assert (only(host).code, only(host).remedy) == ("kvm_not_loaded", f"modprobe {module}")


def test_a_processor_that_cannot_virtualise_is_told(host: MadeHost) -> None:
    host.file("/proc/cpuinfo", "flags : fpu sse\n")
    assert only(host).code == "kvm_unavailable"


def test_a_module_without_its_device_is_told(host: MadeHost) -> None:
    host.folder("/sys/module/kvm_amd")
    assert only(host).code == "kvm_device_missing"
