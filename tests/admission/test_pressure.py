"""How much tasks stood still, read from files as the kernel writes them."""

from pathlib import Path

import pytest

from ramet.admission.pressure import Pressure, PressureGauge

LINES = (
    "some avg10=1.00 avg60=2.00 avg300=3.00 total={some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def write(folder: Path, cpu: int, memory: int) -> None:
    (folder / "cpu").write_text(LINES.format(some=cpu))
    (folder / "memory").write_text(LINES.format(some=memory))


def test_the_share_of_time_since_it_was_asked_last(tmp_path: Path) -> None:
    clock = Clock()
    write(tmp_path, 1_000_000, 0)
    gauge = PressureGauge(str(tmp_path), clock)
    clock.now += 2
    write(tmp_path, 2_500_000, 200_000)
    assert gauge.seconds == 2
    assert gauge.take() == pytest.approx((2.0, 0.75, 0.1))
    assert gauge.seconds == 0
    clock.now += 1
    assert gauge.take() == Pressure(1.0, 0.0, 0.0)
    assert gauge.take() == Pressure(0.0, 0.0, 0.0)  # No time has passed.


def test_a_counter_that_ran_ahead_of_our_clock_is_all_of_the_time(tmp_path: Path) -> None:
    clock = Clock()
    write(tmp_path, 0, 0)
    gauge = PressureGauge(str(tmp_path), clock)
    clock.now += 1
    write(tmp_path, 1_200_000, 0)
    assert gauge.take().cpu == 1.0


@pytest.mark.parametrize("text", ["", "some avg10=1.00\n", "nonsense"])
def test_a_kernel_that_does_not_tell_has_no_pressure(tmp_path: Path, text: str) -> None:
    clock = Clock()
    missing = PressureGauge(str(tmp_path / "missing"), clock)
    (tmp_path / "cpu").write_text(text)
    empty = PressureGauge(str(tmp_path), clock)
    clock.now += 1
    assert missing.take() == empty.take() == Pressure(1.0, 0.0, 0.0)


def test_this_kernel_is_understood() -> None:
    if not Path("/proc/pressure/cpu").exists():
        pytest.skip("this kernel has no PSI")
    gauge = PressureGauge()
    found = gauge.take()
    assert gauge._totals_us[0] > 0
    assert 0 <= found.cpu <= 1
    assert 0 <= found.memory <= 1
