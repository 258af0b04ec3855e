"""What the host's kernel can do: asked by harmless calls, or read from its lists of modules."""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.doctor.findings import Finding, fail, info, ok, warn
from ramet.doctor.host import HostView
from ramet.doctor.subject import Subject
from ramet.linux import writewatch
from ramet.linux.memfd import SealableFile
from ramet.linux.pagemap import PAGEMAP_SCAN

CHECK: Final = "kernel"
_LIMIT_MODULES: Final = ("ifb", "sch_tbf", "sch_ingress", "cls_u32", "act_mirred")
_SYS_userfaultfd: Final = 323  # x86-64
_SYS_openat2: Final = 437
_libc: Final = ctypes.CDLL(None, use_errno=True)

# A dry run (`nft --check`) of what our rules are made of; the kernel judges it and keeps nothing.
_NFT_TRIAL: Final = """\
add table bridge ramet_trial
add set bridge ramet_trial guests { type ifname . ether_addr . ipv4_addr; }
add chain bridge ramet_trial filtered { type filter hook prerouting priority -300; }
add rule bridge ramet_trial filtered ether type ip iifname . ether saddr . ip saddr @guests accept
add table inet ramet_trial
add chain inet ramet_trial nat { type nat hook postrouting priority srcnat; }
add rule inet ramet_trial nat ct state new counter masquerade
"""


@dataclass(frozen=True, slots=True)
class Features:
    """Which calls this kernel answers."""

    memfd_seals: bool
    pidfd: bool
    openat2: bool
    pagemap_scan: bool
    userfaultfd: bool
    write_watch: bool


def probe_features() -> Features:
    """Ask the running kernel; nothing is left behind."""
    return Features(
        memfd_seals=_works(_seal),
        pidfd=_works(lambda: os.close(os.pidfd_open(os.getpid()))),
        openat2=_exists(_SYS_openat2),
        pagemap_scan=_works(_scan),
        userfaultfd=_exists(_SYS_userfaultfd, -1),
        write_watch=writewatch.is_supported(),
    )


def check_features(_: Subject, host: HostView) -> Iterator[Finding]:
    """Say which calls are missing, and what that costs."""
    release = host.read("/proc/sys/kernel/osrelease") or "of unknown version"
    yield from judge_features(probe_features(), release)


def judge_features(features: Features, release: str) -> Iterator[Finding]:
    """Turn what was probed into findings."""
    needed: Mapping[str, tuple[bool, str]] = {
        "memfd_seals": (features.memfd_seals, "sealed memory files"),
        "pidfd": (features.pidfd, "process descriptors (pidfd)"),
        "openat2": (features.openat2, "openat2"),
    }
    newer = "boot a kernel of 6.1 or newer"
    for name, (is_there, words) in needed.items():
        if not is_there:
            yield fail(CHECK, f"no_{name}", f"Linux {release} has no {words}", newer)
    if not features.pagemap_scan:
        yield info(
            CHECK, "no_pagemap_scan", f"Linux {release} has no PAGEMAP_SCAN (6.7): captures take longer"
        )
    if not features.write_watch:
        yield info(
            CHECK,
            "no_write_watch",
            f"Linux {release} cannot note writes (6.7): the pause of a fork's source grows with its memory",
        )
    if not features.userfaultfd:
        yield warn(
            CHECK, "no_userfaultfd", f"Linux {release} has no userfaultfd: the pager cannot serve", newer
        )
    if all(is_there for is_there, _ in needed.values()):
        yield ok(CHECK, "kernel", f"Linux {release} has what ramet needs")


def check_userfaultfd_policy(_: Subject, host: HostView) -> Iterator[Finding]:
    """Tell whether faults in the kernel may be served by a process that is not root."""
    allowed = host.read_number("/proc/sys/vm/unprivileged_userfaultfd")
    if allowed == 0:
        yield info(
            "userfaultfd",
            "userfaultfd_root_only",
            "only root may serve page faults (vm.unprivileged_userfaultfd is 0); the daemon is root",
        )
    elif allowed is not None:
        yield info("userfaultfd", "userfaultfd_for_all", "every user may serve page faults of the kernel")


def check_modules(_: Subject, host: HostView) -> Iterator[Finding]:
    """Look for TUN devices, bridges and what limits traffic, loaded or to be loaded on demand."""
    if not host.exists("/dev/net/tun"):
        yield fail(
            "tun", "tun_missing", "there is no /dev/net/tun: guests cannot have a network", "modprobe tun"
        )
    elif host.is_root and not os.access(host.path("/dev/net/tun"), os.R_OK | os.W_OK):
        yield fail("tun", "tun_forbidden", "/dev/net/tun may not be opened", "chmod 666 /dev/net/tun")
    else:
        yield ok("tun", "tun", "TAP devices can be made")
    state = module_state(host, "bridge")
    if state == "absent":
        yield fail(
            "bridge", "bridge_missing", "this kernel has no bridges", "install the kernel's module bridge"
        )
    else:
        yield ok("bridge", f"bridge_{state}", "bridges can be made")
    absent = [name for name in _LIMIT_MODULES if module_state(host, name) == "absent"]
    if absent:
        yield warn(
            "limits",
            "limits_incomplete",
            f"this kernel has no {', '.join(absent)}: a limited instance does not start",
            "install the kernel's modules for traffic control",
        )
    for name in ("vhost_net", "vhost_vsock"):
        if module_state(host, name) in ("absent", "unknown") and not host.exists(
            f"/dev/{name.replace('_', '-')}"
        ):
            yield info("vhost", f"{name}_missing", f"{name} is not there; QEMU guests do without")


def module_state(host: HostView, name: str) -> str:
    """Return "loaded" (or built in), "loadable", "absent", or "unknown" where modules are not listed."""
    if host.exists(f"/sys/module/{name}"):
        return "loaded"
    release = host.read("/proc/sys/kernel/osrelease") or ""
    folder = Path("/lib/modules") / release
    listed = [host.read(folder / file) for file in ("modules.builtin", "modules.dep")]
    for state, text in zip(("loaded", "loadable"), listed, strict=True):
        names = {Path(line.partition(":")[0]).name.partition(".")[0] for line in (text or "").splitlines()}
        if {name, name.replace("_", "-")} & names:
            return state
    return "unknown" if None in listed else "absent"


def check_nftables(_: Subject, host: HostView) -> Iterator[Finding]:
    """Let the kernel judge rules like ours, in a dry run."""
    if host.find("nft") is None:
        return  # Said among the programs.
    if not host.is_root:
        yield info(
            "nftables", "nftables_not_seen", "only root can tell whether nftables works", "sudo ramet doctor"
        )
        return
    tried = host.run("nft", "--check", "-f", "-", stdin=_NFT_TRIAL)
    if tried is None:
        yield warn("nftables", "nft_silent", "nft does not answer", "nft list ruleset")
    elif tried.code != 0:
        said = next((line for line in tried.text.splitlines() if "rror" in line), tried.text.strip()[:200])
        yield fail(
            "nftables",
            "nftables_incomplete",
            f"the kernel refuses rules like ours: {said}",
            "modprobe -a nf_tables nft_ct nft_masq nf_tables_bridge nft_meta_bridge",
        )
    else:
        yield ok("nftables", "nftables", "nftables takes rules like ours, families bridge and inet")


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _exists(number: int, *arguments: int) -> bool:
    """Call with arguments that cannot do anything: any other refusal than ENOSYS proves the call is there."""
    padded = (*arguments, *(0,) * (4 - len(arguments)))
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(value) for value in padded))
    if result >= 0:
        os.close(result)
    return result >= 0 or ctypes.get_errno() != errno.ENOSYS


def _seal() -> None:
    file = SealableFile("ramet-doctor", 4096)
    try:
        file.seal()
    finally:
        file.close()


def _scan() -> None:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # An empty range: start and end are 0. struct pm_scan_arg, 12 words; the first is its size.
        fcntl.ioctl(fd, PAGEMAP_SCAN, bytearray(struct.pack("12Q", 96, *(0,) * 11)))
    finally:
        os.close(fd)
