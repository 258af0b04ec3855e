"""What an instance holds follows from its record."""

from dataclasses import replace

import pytest

from ramet.admission.demand import Demand, demand_of
from ramet.core.spec import State
from tests.admission.records import MEMORY_BYTES, OVERLAY_BYTES, RUNTIME, record

ALL = Demand(1, MEMORY_BYTES, OVERLAY_BYTES)
DISK = Demand(disk_bytes=OVERLAY_BYTES)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.CREATED, ALL),
        (State.INITIALIZING, ALL),
        (State.RUNNING, ALL),
        (State.SHUTDOWN, ALL),
        (State.PAUSED, Demand(1, MEMORY_BYTES, OVERLAY_BYTES + MEMORY_BYTES)),
        (State.UNKNOWN, Demand(1, MEMORY_BYTES, OVERLAY_BYTES + MEMORY_BYTES)),
        (State.STOPPED, DISK),
        (State.STANDBY, Demand(disk_bytes=OVERLAY_BYTES + MEMORY_BYTES)),
    ],
)
def test_a_state_says_what_is_held(state: State, expected: Demand) -> None:
    assert demand_of(record("a", state)) == expected


def test_every_state_has_its_demand() -> None:
    assert all(demand_of(record("a", state)).disk_bytes >= OVERLAY_BYTES for state in State)


@pytest.mark.parametrize("state", [State.STOPPED, State.STANDBY])
def test_whoever_has_a_vmm_holds_memory_whatever_the_state_says(state: State) -> None:
    assert demand_of(record("a", state, runtime=RUNTIME)).memory_bytes == MEMORY_BYTES


def test_the_higher_of_both_rates_is_held_while_there_is_a_vmm() -> None:
    running, stopped = record("a"), record("a", State.STOPPED)
    limited = replace(running.spec, download_bytes_per_s=100, upload_bytes_per_s=300)
    assert demand_of(replace(running, spec=limited)).network_bytes_per_s == 300
    assert demand_of(replace(stopped, spec=limited)).network_bytes_per_s == 0


def test_deleting_a_stopped_instance_asks_for_nothing_more() -> None:
    assert demand_of(record("a", State.SHUTDOWN, is_deleting=True)) == DISK
    assert demand_of(record("a", State.SHUTDOWN, is_deleting=True, runtime=RUNTIME)) == ALL
