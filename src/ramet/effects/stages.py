"""The contended stages of operations, each as wide as the host can bear.

How many cores there are says how wide a stage can be; how long tasks have stood still for want of memory or
of a processor (`ramet.admission.pressure`) says how wide it may be now. That is looked at whenever a stage is
entered, so an idle daemon does nothing for it.
"""

import os
from typing import Final

import anyio

from ramet.admission.pressure import Pressure, PressureGauge
from ramet.telemetry.metrics import STAGE_WIDTH

CONFIRM_WIDTH_KVM: Final = 64
LOOK_INTERVAL_S: Final = 0.25
RECOVERY_S: Final = 5.0
"""After so long without pressure a stage is as wide as it can be."""
MEMORY_HIGH: Final = 0.1
CPU_HIGH: Final = 0.9


def next_width(width: int, most: int, cores: int, pressure: Pressure) -> int:
    """Return how wide a stage is to be that was `width` wide and can be `most`.

    Where tasks wait for memory, half as wide, down to one; where they wait for processors, half as wide, but
    for every core one. Otherwise a quarter wider, and after a while as wide as can be.
    """
    if pressure.memory >= MEMORY_HIGH:
        return max(1, width // 2)
    if pressure.cpu >= CPU_HIGH and width > cores:
        return max(cores, width // 2)
    if pressure.seconds >= RECOVERY_S:
        return most
    return min(most, width + max(1, width // 4))


class Stages:
    """How many operations may be in each contended stage at once. A place is held only while in it.

    Args:
        width: replaces the number of cores as what the machine can do at once, and stays whatever happens.
    """

    def __init__(
        self, accelerator: str, width: int | None = None, gauge: PressureGauge | None = None
    ) -> None:
        self._cores = width or os.cpu_count() or 1
        self._gauge = gauge or PressureGauge()
        self._is_fixed = width is not None
        # Where processors are emulated, a guest that answers costs a core; with KVM it only waits.
        confirm_width = self._cores if accelerator == "tcg" else CONFIRM_WIDTH_KVM
        self._most = {"vmm_start": self._cores, "confirm": confirm_width}
        self.limiters = {name: anyio.CapacityLimiter(most) for name, most in self._most.items()}

    def vmm_start(self) -> anyio.CapacityLimiter:
        """Return the stage in which VMMs start, as wide as it may be now."""
        return self._adapted("vmm_start")

    def confirm(self) -> anyio.CapacityLimiter:
        """Return the stage in which guests wake, as wide as it may be now."""
        return self._adapted("confirm")

    def _adapted(self, name: str) -> anyio.CapacityLimiter:
        if not self._is_fixed and self._gauge.seconds >= LOOK_INTERVAL_S:
            pressure = self._gauge.take()
            for each, limiter in self.limiters.items():
                width = next_width(int(limiter.total_tokens), self._most[each], self._cores, pressure)
                limiter.total_tokens = width
                STAGE_WIDTH.labels(each).set(width)
        return self.limiters[name]
