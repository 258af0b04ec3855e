"""Which guest gives back how much: in proportion, never below its floor, never more than was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.core.guest_memory import MIB, GuestMemory, HostMemory, ReclaimHold
from ramet.core.ids import InstanceId
from ramet.policies.reclaim import PressureState, ReclaimConfig, floor_bytes, plan, pressure

CONFIG = ReclaimConfig()


def guest(size_mib: int, given_mib: int = 0, unsupported: str = "", error: str = "") -> GuestMemory:
    name = f"g{size_mib}"
    return GuestMemory(InstanceId(name), name, "qemu", size_mib * MIB, given_mib * MIB, unsupported, error)


def asked(wanted_mib: int, *guests: GuestMemory, config: ReclaimConfig = CONFIG) -> list[int]:
    """Return what each guest is to give back, in MiB."""
    return [step.balloon_bytes // MIB for step in plan(guests, wanted_mib * MIB, config)]


@pytest.mark.parametrize(
    ("size_mib", "floor_mib"), [(64, 64), (512, 512), (600, 512), (1024, 512), (1025, 513), (4096, 2048)]
)
def test_a_guest_keeps_half_and_at_least_its_floor(size_mib: int, floor_mib: int) -> None:
    assert floor_bytes(size_mib * MIB, CONFIG) == floor_mib * MIB


def test_what_is_asked_for_is_divided_in_proportion() -> None:
    guests = (guest(1024), guest(2048), guest(4096))  # 512, 1024 and 2048 to spare.
    assert asked(700, *guests) == [100, 200, 400]
    assert asked(3584, *guests) == asked(9999, *guests) == [512, 1024, 2048]
    assert asked(1, *guests) == [0, 0, 1]
    assert asked(0, *guests) == [0, 0, 0]
    assert asked(100) == []


def test_it_is_what_is_given_in_all_and_not_more_on_top() -> None:
    assert asked(100, guest(1024, given_mib=300)) == [100]
    assert asked(100, guest(1024, given_mib=100)) == [100]


def test_who_cannot_be_asked_stays_as_it_is_and_the_others_give_its_share() -> None:
    child, silent = guest(4096, 7, unsupported="a child"), guest(4096, 9, error="silent")
    assert asked(500, child, guest(2048), silent) == [7, 500, 9]
    assert asked(500, child) == [7]


def test_settings_move_the_floor() -> None:
    config = ReclaimConfig(floor_percent=10, floor_bytes_min=64 * MIB)
    assert asked(9999, guest(512), guest(1000), config=config) == [448, 900]


@given(
    st.lists(st.integers(1, 1 << 20), max_size=30),
    st.integers(0, 1 << 26),
    st.integers(0, 100),
    st.integers(0, 1 << 34),
)
def test_no_guest_falls_below_its_floor_and_the_sum_is_as_asked(
    sizes_mib: list[int], wanted_mib: int, percent: int, floor_min: int
) -> None:
    config = ReclaimConfig(floor_percent=percent, floor_bytes_min=floor_min)
    steps = plan([guest(size) for size in sizes_mib], wanted_mib * MIB, config)
    assert all(step.floor_bytes <= step.target_bytes <= step.guest.assigned_bytes for step in steps)
    spare = sum((step.guest.assigned_bytes - step.floor_bytes) // MIB for step in steps)
    assert sum(step.balloon_bytes for step in steps) == min(wanted_mib, spare) * MIB


def test_a_host_that_was_short_is_so_until_there_is_plenty_again() -> None:
    def at(percent: int, before: PressureState) -> PressureState:
        return pressure(HostMemory(1000, percent * 10), before, CONFIG)

    healthy, short = PressureState.HEALTHY, PressureState.PRESSURE
    assert [at(percent, healthy) for percent in (9, 10, 12)] == [short, healthy, healthy]
    assert [at(percent, short) for percent in (9, 12, 14, 15)] == [short, short, short, healthy]


def test_a_hold_is_read_as_it_was_written() -> None:
    hold = ReclaimHold(12.5, 7 * MIB, "why")
    assert ReclaimHold.from_json(hold.to_json()) == hold
    for text in ("", "[]", "{}", "null"):
        with pytest.raises((ValueError, TypeError, KeyError)):
            ReclaimHold.from_json(text)
