"""How much of the time tasks of this host stand still for want of a processor, or of memory (PSI).

See https://docs.kernel.org/accounting/psi.html.
"""

import os
import re
import time
from collections.abc import Callable
from typing import Final, NamedTuple

PRESSURE: Final = "/proc/pressure"
_BYTES_MAX: Final = 512
_TOTAL: Final = re.compile(rb"^some .*\btotal=(\d+)$", re.MULTILINE)


class Pressure(NamedTuple):
    """The shares (0 to 1) of a time of `seconds` in which some task stood still."""

    seconds: float
    cpu: float
    memory: float


class PressureGauge:
    """Tells the pressure since it was asked last. A kernel without PSI has none."""

    def __init__(self, folder: str = PRESSURE, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._asked_at, self._totals_us = clock(), self._read()

    @property
    def seconds(self) -> float:
        """How long ago it was asked."""
        return self._clock() - self._asked_at

    def take(self) -> Pressure:
        """Return what the pressure has been since this was called last."""
        now, totals_us = self._clock(), self._read()
        seconds, before_us = now - self._asked_at, self._totals_us
        self._asked_at, self._totals_us = now, totals_us
        cpu, memory = (
            min(1.0, max(0, total - before) / (seconds * 1e6)) if seconds > 0 else 0.0
            for total, before in zip(totals_us, before_us, strict=True)
        )
        return Pressure(seconds, cpu, memory)

    def _read(self) -> tuple[int, int]:
        return self._total_us("cpu"), self._total_us("memory")

    def _total_us(self, resource: str) -> int:
        try:
            fd = os.open(f"{self._folder}/{resource}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = _TOTAL.search(os.read(fd, _BYTES_MAX))
            finally:
                os.close(fd)
        except OSError:
            return 0  # Not built in, or switched off (psi=0).
        return int(found[1]) if found else 0
