"""How wide a stage is, by cores and pressure."""

import anyio
import anyio.lowlevel
import pytest

from ramet.admission.pressure import Pressure, PressureGauge
from ramet.effects.stages import LOOK_INTERVAL_S, Stages, next_width
from ramet.telemetry.timings import staged

pytestmark = pytest.mark.anyio


class Told(PressureGauge):
    """A gauge that says what a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.told = Pressure(LOOK_INTERVAL_S, 0.0, 0.0)
        self.looks = 0

    @property
    def seconds(self) -> float:
        return self.told.seconds

    def take(self) -> Pressure:
        self.looks += 1
        return self.told


@pytest.mark.parametrize(
    ("width", "most", "pressure", "expected"),
    [
        (64, 64, Pressure(0.3, 0.2, 0.0), 64),
        (64, 64, Pressure(0.3, 0.95, 0.0), 32),
        (6, 64, Pressure(0.3, 0.95, 0.0), 4),
        (4, 64, Pressure(0.3, 1.0, 0.0), 5),  # One per core is never too many for processors.
        (4, 4, Pressure(0.3, 1.0, 0.0), 4),
        (4, 4, Pressure(0.3, 1.0, 0.2), 2),
        (1, 4, Pressure(0.3, 1.0, 0.9), 1),
        (1, 4, Pressure(0.3, 0.0, 0.0), 2),
        (16, 64, Pressure(0.3, 0.0, 0.0), 20),
        (1, 64, Pressure(9.0, 0.0, 0.0), 64),
        (64, 64, Pressure(9.0, 0.0, 0.5), 32),
    ],
)
def test_the_next_width(width: int, most: int, pressure: Pressure, expected: int) -> None:
    assert next_width(width, most, 4, pressure) == expected


async def test_a_stage_is_entered_as_wide_as_the_host_can_bear_and_widens_again() -> None:
    gauge = Told()
    stages = Stages("kvm", gauge=gauge)
    assert stages.confirm().total_tokens == 64
    gauge.told = Pressure(LOOK_INTERVAL_S, 0.0, 0.5)
    widths = [stages.confirm().total_tokens for _ in range(8)]
    assert widths == [32, 16, 8, 4, 2, 1, 1, 1]
    assert stages.vmm_start().total_tokens == 1
    async with staged("confirm", stages.confirm()):
        assert stages.confirm().available_tokens == 0
        gauge.told = Pressure(LOOK_INTERVAL_S, 0.0, 0.0)
        with anyio.fail_after(5):
            async with staged("confirm", stages.confirm()):
                await anyio.lowlevel.checkpoint()
    gauge.told = Pressure(60.0, 0.0, 0.0)
    assert stages.confirm().total_tokens == 64


async def test_it_is_not_looked_at_more_often_than_it_says_anything() -> None:
    gauge = Told()
    gauge.told = Pressure(LOOK_INTERVAL_S / 2, 1.0, 1.0)
    stages = Stages("tcg", gauge=gauge)
    assert stages.confirm().total_tokens == stages.vmm_start().total_tokens
    assert gauge.looks == 0


async def test_a_width_that_was_set_stays() -> None:
    gauge = Told()
    gauge.told = Pressure(LOOK_INTERVAL_S, 1.0, 1.0)
    stages = Stages("tcg", 7, gauge)
    assert stages.confirm().total_tokens == stages.vmm_start().total_tokens == 7
    assert gauge.looks == 0
