"""The process that keeps logs bounded, whether or not there is a daemon.

A guest writes as much as it likes while the daemon is down, so what bounds its logs must not end with the
daemon. One such process serves a data folder; it does nothing but look at the sizes of logs and rotate those
that are full. It ends when both its daemon and all VMMs are gone, or when a younger one takes over.
"""

import fcntl
import os
import select
import sys
from pathlib import Path
from typing import Final

from ramet.linux.process import list_command_lines
from ramet.logs.rotation import LogBounds, sweep

LOCK_FILE: Final = "logs.lock"
"""Names the process in charge, which holds it."""
INTERVAL_S_MAX: Final = 1.0
INTERVAL_S_MIN: Final = 0.02


class Keeper:
    """Sweeps the logs under `data`; `daemon_fd` ends when the daemon does."""

    def __init__(self, data: Path, bounds: LogBounds, daemon_fd: int) -> None:
        self._instances, self._bounds = data / "instances", bounds
        self._lock = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._token = str(os.getpid()).encode()
        self._daemon = select.poll()
        self._daemon.register(daemon_fd, select.POLLIN)
        self._has_daemon = True

    def run(self) -> None:
        """Keep the logs bounded as long as there is anybody who writes some."""
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, self._token, 0)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # The one before us leaves when it sees our name.
        longest, interval_s = 0, INTERVAL_S_MIN
        while self._is_in_charge() and (self._has_daemon or self._has_vmm()):
            before = longest
            try:
                longest = sweep(self._instances, self._bounds)
            except FileNotFoundError:
                return  # The data folder is gone.
            except OSError as error:  # A full disk passes, and is no reason to leave other logs to grow.
                print(f"the logs were not bounded: {error}", file=sys.stderr, flush=True)
            interval_s = self._next_interval_s(longest, longest - before, interval_s)
            self._wait(interval_s)

    def _next_interval_s(self, longest: int, grown: int, interval_s: float) -> float:
        """Return when to look again: at the latest in half the time in which the longest would be full."""
        if grown < 0:  # One was rotated, and may have been over its bound already.
            return max(INTERVAL_S_MIN, interval_s / 2)
        if grown == 0:
            return min(INTERVAL_S_MAX, 2 * interval_s)
        left = max(0, self._bounds.file_bytes_max - longest)
        return min(INTERVAL_S_MAX, max(INTERVAL_S_MIN, left / (grown / interval_s) / 2))

    def _wait(self, interval_s: float) -> None:
        if not self._has_daemon:
            select.poll().poll(interval_s * 1000)
        elif self._daemon.poll(interval_s * 1000):
            self._has_daemon = False

    def _is_in_charge(self) -> bool:
        return os.pread(self._lock, 32, 0) == self._token

    def _has_vmm(self) -> bool:
        """Tell whether a process was started with files of an instance, as every driver starts its VMMs."""
        place = f"{self._instances}/"
        return any(place in argument for _, arguments in list_command_lines() for argument in arguments)


def main() -> None:
    """Run with the arguments DATA FILE_BYTES_MAX ROTATED_COUNT DAEMON_FD."""
    data, file_bytes_max, rotated_count, daemon_fd = sys.argv[1:]
    bounds = LogBounds(int(file_bytes_max), int(rotated_count))
    Keeper(Path(data), bounds, int(daemon_fd)).run()


if __name__ == "__main__":
    main()
