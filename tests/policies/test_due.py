"""When instances are looked at, by a clock that somebody sets."""

import anyio
import pytest

from ramet.core.ids import InstanceId
from ramet.policies.due import DueTimes

pytestmark = pytest.mark.anyio

A, B = InstanceId("a"), InstanceId("b")
DAY_S = 86_400.0
TIMEOUT_S = 20.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def is_none_due(times: DueTimes) -> bool:
    with anyio.move_on_after(0):
        await times.next()
        return False
    return True


async def test_a_clock_that_is_set_back_has_all_be_looked_at_anew_and_once() -> None:
    clock = Clock()
    times = DueTimes(clock)
    times.put(clock.now + 100, A)
    times.put(clock.now + 50, B)
    times.put(clock.now + 10, B)
    assert await is_none_due(times)
    clock.now -= DAY_S
    with anyio.fail_after(TIMEOUT_S):
        assert {await times.next(), await times.next()} == {A, B}
    assert await is_none_due(times)
    times.put(clock.now + 5, A)
    assert await is_none_due(times)
    clock.now += 5
    assert await times.next() == A


async def test_a_clock_that_is_corrected_by_a_little_changes_nothing() -> None:
    clock = Clock()
    times = DueTimes(clock)
    times.put(clock.now + 1, A)
    clock.now -= 0.5
    assert await is_none_due(times)
    clock.now += 1.5
    assert await times.next() == A


async def test_a_clock_that_is_set_forward_has_be_due_what_has_come() -> None:
    clock = Clock()
    times = DueTimes(clock)
    times.put(clock.now + 100, A)
    times.put(clock.now + 2 * DAY_S, B)
    clock.now += DAY_S
    assert await times.next() == A
    assert await is_none_due(times)
