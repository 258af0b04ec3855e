"""The systemd unit: the daemon restarts at any time, its guests do not notice.

Guests are processes of the daemon's control group, so `KillMode=process` is what keeps them alive over a
stop, a restart and an upgrade; `OOMPolicy=continue` keeps the daemon when the kernel ends a guest for its
memory. The rest takes from the daemon, and from every VMM it starts, what neither needs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.core.errors import Invalid

CAPABILITIES: Final = (
    "CAP_NET_ADMIN",  # TAPs, the bridge, nftables.
    "CAP_SYS_PTRACE",  # Reading guests' memory for a capture, also of VMMs an earlier daemon started.
    "CAP_KILL",
    "CAP_CHOWN",  # From here on: unpacking images with their owners, devices and capabilities.
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_SETFCAP",
)
OPEN_FILES: Final = 1_048_576
START_TIMEOUT_S: Final = 300  # The first start unpacks a kernel; each start looks at all guests.

_UNIT: Final = """\
{header}
[Unit]
Description=ramet: OCI images as microVMs
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
Restart=on-failure
RestartSec=2
TimeoutStartSec={start_timeout_s}
# Stop and restart end the daemon alone: guests run on, and the next daemon takes hold of them.
KillMode=process
OOMPolicy=continue
Delegate=yes
TasksMax=infinity
LimitNOFILE={open_files}
# The daemon goes before its guests; it takes this from what it starts.
LimitNICE=-15

RuntimeDirectory=ramet
RuntimeDirectoryPreserve=yes
# /var/tmp: where large uploads are spooled.
ReadWritePaths={writable} -/var/tmp
ProtectSystem=strict
# Readable, since `ramet image import` hands over paths; and no PrivateTmp, for the same reason.
ProtectHome=read-only
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=/dev/kvm rw
DeviceAllow=/dev/net/tun rw
DeviceAllow=/dev/vhost-net rw
DeviceAllow=/dev/vhost-vsock rw
DeviceAllow=/dev/userfaultfd rw
# Images may hold device nodes: they may be made, not opened.
DeviceAllow=char-* m
DeviceAllow=block-* m
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_VSOCK AF_PACKET
SystemCallArchitectures=native
# Not @debug: the userfaultfd by which a VMM's writes are noted is borrowed from it (pidfd_getfd).
SystemCallFilter=~@module @reboot @swap @clock @obsolete @cpu-emulation @mount @raw-io perf_event_open ptrace
RestrictNamespaces=yes
SystemCallErrorNumber=EPERM
LockPersonality=yes
RestrictRealtime=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
# Not ProtectKernelModules: it hides /lib/modules, from which guests' kernels are taken; modules cannot be
# loaded all the same. Not ProtectKernelTunables: net.ipv4 is set. Not MemoryDenyWriteExecute: emulation
# writes code. Not RestrictSUIDSGID: images hold such files.

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """What differs between units.

    Args:
        program: the words that start `ramet`, such as ("/opt/ramet/bin/ramet",).
        config: path of the settings.
        writable: folders the daemon writes to, beside /run/ramet.
    """

    program: tuple[str, ...]
    config: Path
    writable: tuple[Path, ...]

    def render(self, header: str) -> str:
        """Return the unit's text, beginning with the line `header`.

        Raises:
            Invalid: a path cannot stand in a unit.
        """
        command = [*self.program, "serve", "--config", str(self.config)]
        return _UNIT.format(
            header=header,
            command=" ".join(_plain(command)),
            writable=" ".join(_plain(map(str, self.writable))),
            capabilities=" ".join(CAPABILITIES),
            open_files=OPEN_FILES,
            start_timeout_s=START_TIMEOUT_S,
        )


def _plain(words: Iterable[str]) -> list[str]:
    listed = list(words)
    for word in listed:
        if not word or any(c.isspace() or c in "\"'\\;$" or not c.isprintable() for c in word):
            raise Invalid(f"{word!r} cannot stand in a unit file", remedy="choose a path of plain characters")
    return [word.replace("%", "%%") for word in listed]
