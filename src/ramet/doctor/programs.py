"""The programs of others that ramet starts, their versions, and what they can do."""

import re
from collections.abc import Iterator

from ramet.doctor.findings import Finding, fail, info, ok, warn
from ramet.doctor.host import HostView
from ramet.doctor.subject import Subject

QEMU = "qemu-system-x86_64"
QEMU_VERSION_MIN = (7, 2)
QEMU_MACHINE_TYPE = "pc-q35-7.2"  # The device model is written for this one.
EROFS_VERSION_MIN = (1, 5)

_NEEDED = (  # program, what for, Debian package
    ("mkfs.ext4", "the guests' disks", "e2fsprogs"),
    ("nft", "the guests' firewall", "nftables"),
)
_NEEDED_FOR_PACKAGE = (
    ("dpkg-deb", "taking the guest kernel out of its package", "dpkg"),
    ("depmod", "the modules of the guest kernel", "kmod"),
)


def check_qemu(_: Subject, host: HostView) -> Iterator[Finding]:
    """Look for QEMU, its version and the machine types we use."""
    told = host.run(QEMU, "--version")
    if told is None:
        yield fail(
            "qemu",
            "qemu_missing",
            f"{QEMU} is not installed or does not answer",
            "apt-get install qemu-system-x86",
        )
        return
    version = find_version(told.text)
    if version is None:
        yield fail(
            "qemu", "qemu_unknown", f"{QEMU} does not tell its version", "apt-get install qemu-system-x86"
        )
        return
    shown = ".".join(map(str, version))
    if version[:2] < QEMU_VERSION_MIN:
        least = ".".join(map(str, QEMU_VERSION_MIN))
        yield fail(
            "qemu",
            "qemu_too_old",
            f"QEMU {shown} is older than {least}",
            "upgrade to Debian 12 or newer, then apt-get install qemu-system-x86",
        )
        return
    machines = host.run(QEMU, "-machine", "help")
    offered = {line.split()[0] for line in machines.text.splitlines() if line.strip()} if machines else set()
    if QEMU_MACHINE_TYPE not in offered:
        yield fail(
            "qemu",
            "qemu_machine_missing",
            f"QEMU {shown} has no machine type {QEMU_MACHINE_TYPE}",
            "apt-get install qemu-system-x86; a QEMU built by hand may lack it",
        )
        return
    has_microvm = "microvm" in offered
    types = f"types {QEMU_MACHINE_TYPE} and microvm" if has_microvm else f"type {QEMU_MACHINE_TYPE}"
    yield ok("qemu", "qemu", f"QEMU {shown} with machine {types}")
    if not has_microvm:
        yield info(
            "qemu", "qemu_no_microvm", "QEMU has no machine type microvm: there is no hypervisor qemu-microvm"
        )


def check_other_vmms(subject: Subject, host: HostView) -> Iterator[Finding]:
    """Tell which other VMMs are installed."""
    optional = (
        ("firecracker", "Firecracker", subject.firecracker_program),
        ("cloud_hypervisor", "Cloud Hypervisor", subject.cloud_hypervisor_program),
    )
    for code, name, program in optional:
        told = host.run(program, "--version")
        if told is None:
            yield info("vmm", f"{code}_missing", f"{name} is not installed; it is optional")
        else:
            version = find_version(told.text)
            shown = ".".join(map(str, version)) if version else "of unknown version"
            yield info("vmm", code, f"{name} {shown} is installed")


def check_image_tools(_: Subject, host: HostView) -> Iterator[Finding]:
    """Look for what makes root disks, and how well."""
    told = host.run("mkfs.erofs", "--help")
    if told is None:
        yield fail(
            "erofs",
            "erofs_missing",
            "mkfs.erofs is not installed: no image can be used",
            "apt-get install erofs-utils",
        )
        return
    shown = told.text
    asked = host.run("mkfs.erofs", "--version") or told
    version = find_version(asked.text)
    name = f"mkfs.erofs {'.'.join(map(str, version))}" if version else "mkfs.erofs"
    if version is not None and version < EROFS_VERSION_MIN:
        yield warn(
            "erofs",
            "erofs_old",
            f"{name} is older than those ramet was tried with",
            "apt-get install erofs-utils on Debian 12 or newer",
        )
    elif not re.search(r"^\s*lz4|compressors.*lz4", shown, re.MULTILINE):
        yield warn(
            "erofs",
            "erofs_no_lz4",
            f"{name} cannot compress with lz4: root disks are stored as they are",
            "apt-get install erofs-utils",
        )
    else:
        yield ok("erofs", "erofs", f"{name} with lz4")


def check_needed_programs(subject: Subject, host: HostView) -> Iterator[Finding]:
    """Look for the smaller programs that are started."""
    needed = _NEEDED + (_NEEDED_FOR_PACKAGE if subject.kernel_package is not None else ())
    missing = [row for row in needed if host.find(row[0]) is None]
    for program, purpose, package in missing:
        yield fail(
            "programs",
            "program_missing",
            f"{program} is not installed, needed for {purpose}",
            f"apt-get install {package}",
        )
    if not missing:
        yield ok("programs", "programs", f"{', '.join(row[0] for row in needed)} are installed")


def find_version(text: str) -> tuple[int, ...] | None:
    """Return the first thing in `text` that looks like a version: "v1.13.1" is (1, 13, 1)."""
    found = re.search(r"\bv?(\d+(?:\.\d+)+)", text)
    return tuple(map(int, found[1].split("."))) if found else None
