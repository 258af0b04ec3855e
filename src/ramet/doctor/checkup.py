"""All checks, each in a thread of its own: none waits for another, throws, or is waited for without end."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ramet.doctor import accelerator, capacity, hypervisors, installation, kernel, network, programs
from ramet.doctor.findings import Finding, warn
from ramet.doctor.host import HostView
from ramet.doctor.subject import Subject

CHECK_TIMEOUT_S: Final = 5.0

Check = Callable[[Subject, HostView], Iterable[Finding]]

CHECKS: Final[Sequence[Check]] = (
    accelerator.check_accelerator,
    hypervisors.check_hypervisors,
    programs.check_qemu,
    programs.check_other_vmms,
    programs.check_image_tools,
    programs.check_needed_programs,
    installation.check_native_programs,
    installation.check_guest_kernel,
    kernel.check_features,
    kernel.check_userfaultfd_policy,
    kernel.check_modules,
    kernel.check_nftables,
    network.check_forwarding,
    network.check_firewalls,
    network.check_subnet,
    network.check_dns,
    capacity.check_disk,
    capacity.check_memory,
    capacity.check_limits,
    capacity.check_cgroups,
    installation.check_data_folder,
    installation.check_daemon,
    installation.check_service,
)
"""In the order of the report."""


def check_all(
    subject: Subject,
    host: HostView | None = None,
    checks: Sequence[Check] = CHECKS,
    timeout_s: float = CHECK_TIMEOUT_S,
) -> list[Finding]:
    """Run the checks and return what they found, in their order. Changes nothing and raises nothing.

    Args:
        timeout_s: how long to wait for the slowest; one that takes longer is a finding of its own.
    """
    view = host or HostView()
    runs = [_Run(check, subject, view) for check in checks]
    done = threading.Event()
    deadline = threading.Timer(timeout_s, done.set)
    deadline.daemon = True
    for run in runs:
        run.start()
    deadline.start()
    for run in runs:
        while run.is_alive() and not done.is_set():
            run.join(0.05)
    deadline.cancel()
    return [finding for run in runs for finding in run.result(timeout_s)]


class _Run(threading.Thread):
    """One check under way; a daemon thread, so that one that hangs (a dead network disk) holds up no exit."""

    def __init__(self, check: Check, subject: Subject, host: HostView) -> None:
        super().__init__(daemon=True)
        self._check, self._subject, self._host = check, subject, host
        self._found: list[Finding] | None = None

    def run(self) -> None:
        name = self._check.__name__.removeprefix("check_")
        try:
            self._found = list(self._check(self._subject, self._host))
        except Exception as error:  # Whatever is wrong with this host, the other checks are worth telling.
            self._found = [
                warn(
                    name,
                    "check_failed",
                    f"this check broke off: {error!r}",
                    "report it with `ramet doctor --json`",
                )
            ]

    def result(self, timeout_s: float) -> list[Finding]:
        if self._found is not None:
            return self._found
        name = self._check.__name__.removeprefix("check_")
        return [
            warn(name, "check_timeout", f"this check gave no answer in {timeout_s:g} seconds", "ramet doctor")
        ]
