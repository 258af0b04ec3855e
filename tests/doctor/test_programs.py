"""Programs that are missing, old, crippled or hang."""

from pathlib import Path

import pytest

from ramet.doctor.findings import Level
from ramet.doctor.programs import (
    check_image_tools,
    check_needed_programs,
    check_other_vmms,
    check_qemu,
    find_version,
)
from ramet.doctor.subject import Subject
from tests.doctor.made_host import MadeHost

QEMU = 'case "$1" in --version) echo "QEMU emulator version {version} (Debian)";; *) echo "{machines}";; esac'
MACHINES = "microvm  microvm (i386)\npc-q35-7.2  Standard PC"
EROFS_HELP = "usage: mkfs.erofs [options]\n\nAvailable compressors are: {compressors}"


def codes(findings: object) -> list[str]:
    return [finding.code for finding in findings]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("version", "machines", "expected"),
    [
        ("7.2.22", MACHINES, ["qemu"]),
        ("10.0.2", MACHINES, ["qemu"]),
        ("7.2.22", "pc-q35-7.2 PC", ["qemu", "qemu_no_microvm"]),
        ("6.2.0", MACHINES, ["qemu_too_old"]),
        ("11.0.0", "pc-q35-8.0 PC", ["qemu_machine_missing"]),
        ("strange", MACHINES, ["qemu_unknown"]),
    ],
)
def test_qemu_is_judged_by_version_and_machine_types(
    host: MadeHost, version: str, machines: str, expected: list[str]
) -> None:
    host.program("qemu-system-x86_64", QEMU.format(version=version, machines=machines))
    assert codes(check_qemu(Subject(), host.view())) == expected


def test_a_host_without_qemu_fails_with_the_command_that_installs_it(host: MadeHost) -> None:
    [finding] = check_qemu(Subject(), host.view())
    assert (finding.code, finding.level) == ("qemu_missing", Level.FAIL)
    assert finding.remedy == "apt-get install qemu-system-x86"


def test_other_vmms_are_good_to_know_and_never_a_failure(host: MadeHost) -> None:
    host.program("firecracker", "echo Firecracker v1.13.1")
    found = list(check_other_vmms(Subject(), host.view()))
    assert codes(found) == ["firecracker", "cloud_hypervisor_missing"]
    assert {finding.level for finding in found} == {Level.INFO}
    assert "1.13.1" in found[0].message


@pytest.mark.parametrize(
    ("version", "compressors", "expected"),
    [
        ("mkfs.erofs 1.5", "lz4hc, lz4", "erofs"),
        ("mkfs.erofs 1.8.6", "lz4hc, lz4, zstd", "erofs"),
        ("mkfs.erofs 1.4", "lz4", "erofs_old"),
        ("mkfs.erofs 1.5", "", "erofs_no_lz4"),
    ],
)
def test_mkfs_erofs_is_judged_by_what_it_can_do(
    host: MadeHost, version: str, compressors: str, expected: str
) -> None:
    help_text = EROFS_HELP.format(compressors=compressors)
    host.program("mkfs.erofs", f'case "$1" in --version) echo "{version}";; *) echo "{help_text}";; esac')
    assert codes(check_image_tools(Subject(), host.view())) == [expected]


def test_mkfs_erofs_is_missing(host: MadeHost) -> None:
    [finding] = check_image_tools(Subject(), host.view())
    assert (finding.code, finding.remedy) == ("erofs_missing", "apt-get install erofs-utils")


def test_each_missing_program_is_one_line_with_its_package(host: MadeHost) -> None:
    found = list(check_needed_programs(Subject(), host.view()))
    assert [finding.remedy for finding in found] == ["apt-get install e2fsprogs", "apt-get install nftables"]
    host.program("mkfs.ext4")
    host.program("nft")
    assert codes(check_needed_programs(Subject(), host.view())) == ["programs"]


def test_what_unpacks_a_kernel_package_is_needed_only_with_one(host: MadeHost) -> None:
    host.program("mkfs.ext4")
    host.program("nft")
    subject = Subject(kernel_package=Path("/k.deb"))
    remedies = [finding.remedy for finding in check_needed_programs(subject, host.view())]
    assert remedies == ["apt-get install dpkg", "apt-get install kmod"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)", (7, 2, 22)),
        ("Firecracker v1.13.1", (1, 13, 1)),
        ("nothing", None),
        ("", None),
    ],
)
def test_versions_are_found_in_any_text(text: str, version: tuple[int, ...] | None) -> None:
    assert find_version(text) == version
