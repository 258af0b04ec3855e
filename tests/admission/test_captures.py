"""The memory of a capture is held from the wish for it to the end of the last VMM that maps it."""

import pytest

from ramet.admission.captures import CaptureMemory
from ramet.admission.demand import NOTHING, Demand, Resource
from ramet.admission.ledger import InsufficientResources, Ledger, Limit
from ramet.core.ids import InstanceId
from tests.admission.records import MEMORY_BYTES, record

SOURCE = record("src")
A, B = InstanceId("a"), InstanceId("b")


def captures(room: int) -> tuple[CaptureMemory, Ledger]:
    """Return captures with memory for `room` of them."""
    ledger = Ledger((Limit(Resource.MEMORY, room * MEMORY_BYTES),))
    return CaptureMemory(ledger), ledger


def test_a_burst_expects_one_capture_and_it_is_held_while_any_child_maps_it() -> None:
    memory, ledger = captures(room=1)
    memory.expect(SOURCE, A)
    memory.expect(SOURCE, B)
    memory.begin(SOURCE, "first")
    assert (memory.count, memory.memory_bytes) == (1, MEMORY_BYTES)
    memory.map(A, "first")
    memory.map(B, "first")
    memory.close("first")
    memory.leave(A)
    assert ledger.total.memory_bytes == MEMORY_BYTES
    memory.leave(B)
    assert (ledger.total, memory.count) == (NOTHING, 0)


def test_without_room_for_a_capture_a_child_is_refused() -> None:
    memory, ledger = captures(room=0)
    with pytest.raises(InsufficientResources, match="a capture of instance src"):
        memory.expect(SOURCE, A)
    with pytest.raises(InsufficientResources, match="a capture of instance src"):
        memory.begin(SOURCE, "unexpected")
    memory.leave(A)
    assert (ledger.total, memory.count) == (NOTHING, 0)


def test_a_capture_that_fails_is_given_back() -> None:
    memory, ledger = captures(room=1)
    memory.expect(SOURCE, A)
    memory.begin(SOURCE, "first")
    memory.close("first")
    assert ledger.total == NOTHING


def test_who_comes_while_a_capture_is_taken_expects_the_next_until_it_maps_this_one() -> None:
    memory, ledger = captures(room=2)
    memory.expect(SOURCE, A)
    memory.begin(SOURCE, "first")
    memory.expect(SOURCE, B)
    assert (memory.count, ledger.total.memory_bytes) == (2, 2 * MEMORY_BYTES)
    memory.map(A, "first")
    memory.map(B, "first")
    assert (memory.count, ledger.total.memory_bytes) == (1, MEMORY_BYTES)


def test_nobody_waits_for_a_capture_that_none_of_its_children_needs_any_more() -> None:
    memory, ledger = captures(room=1)
    memory.expect(SOURCE, A)
    memory.expect(SOURCE, B)
    memory.leave(A)
    assert memory.count == 1
    memory.leave(B)
    assert (ledger.total, memory.count) == (NOTHING, 0)


def test_a_capture_found_mapped_by_running_vmms_is_counted_once() -> None:
    memory, ledger = captures(room=0)
    memory.find(A, "00:01 77", MEMORY_BYTES)
    memory.find(B, "00:01 77", MEMORY_BYTES)
    assert ledger.total == Demand(memory_bytes=MEMORY_BYTES)
    memory.leave(A)
    memory.leave(B)
    assert ledger.total == NOTHING
