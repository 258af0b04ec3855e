"""The slot pool: bookkeeping only, so no host is needed."""

from ipaddress import IPv4Network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ramet.core.ids import InstanceId
from ramet.net.slots import BRIDGE_ENDPOINTS_MAX, NoEndpoint, SlotHeld, SlotPool, SlotsExhausted

SUBNET = IPv4Network("10.0.0.0/28")  # 16 addresses, 13 slots: 2..14.
NAMES = st.sampled_from("abcdefghijklmnopq").map(InstanceId)


def test_everything_follows_from_the_slot() -> None:
    endpoint = SlotPool(IPv4Network("10.100.0.0/16")).adopt(InstanceId("a"), 514)
    assert str(endpoint.ip) == "10.100.2.2"
    assert endpoint.mac == "02:fc:0a:64:02:02"
    assert endpoint.tap_name == "rmt00514"
    assert endpoint.ifb_name == "rmtu0514"


def test_the_slot_free_longest_is_given_next() -> None:
    pool = SlotPool(SUBNET)
    for number in range(13):
        pool.reserve_nowait(InstanceId(str(number)))
    with pytest.raises(SlotsExhausted):
        pool.reserve_nowait(InstanceId("x"))
    pool.release(InstanceId("5"))
    pool.release(InstanceId("3"))
    assert pool.reserve_nowait(InstanceId("x")).slot == 7
    assert pool.reserve_nowait(InstanceId("y")).slot == 5


def test_a_large_subnet_is_bounded_by_the_ports_of_a_bridge() -> None:
    pool = SlotPool(IPv4Network("10.0.0.0/8"))
    assert pool.free_count == BRIDGE_ENDPOINTS_MAX
    slots = [pool.reserve_nowait(InstanceId(str(n))).slot for n in range(BRIDGE_ENDPOINTS_MAX)]
    assert slots == list(range(2, 2 + BRIDGE_ENDPOINTS_MAX))
    with pytest.raises(SlotsExhausted):
        pool.reserve_nowait(InstanceId("one more"))


def test_who_holds_nothing_has_no_endpoint() -> None:
    with pytest.raises(NoEndpoint):
        SlotPool(SUBNET).endpoint(InstanceId("a"))


class PoolModel(RuleBasedStateMachine):
    """The pool against a dict and a list in the order of release."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = SlotPool(SUBNET)
        self.held: dict[InstanceId, int] = {}
        self.free = list(range(2, 15))

    @rule(name=NAMES)
    def reserve(self, name: InstanceId) -> None:
        if name not in self.held and not self.free:
            with pytest.raises(SlotsExhausted):
                self.pool.reserve_nowait(name)
            return
        if name not in self.held:
            self.held[name] = self.free.pop(0)
        assert self.pool.reserve_nowait(name).slot == self.held[name]

    @rule(name=NAMES, slot=st.integers(-1, 17))
    def adopt(self, name: InstanceId, slot: int) -> None:
        if name in self.held or slot not in self.free:
            with pytest.raises(SlotHeld):
                self.pool.adopt(name, slot)
            return
        self.free.remove(slot)
        self.held[name] = slot
        assert self.pool.adopt(name, slot).slot == slot

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.pool.release(name)
        self.free.append(self.held.pop(name))

    @invariant()
    def all_slots_are_accounted_for(self) -> None:
        assert {e.slot for e in self.pool.endpoints()} == set(self.held.values())
        assert self.pool.held_count == len(self.held)
        assert self.pool.free_count == len(self.free)
        assert all(name in self.pool for name in self.held)


TestPool = PoolModel.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
