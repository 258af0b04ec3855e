"""Whatever is done in whatever order, never less is held than is needed, and at rest no more."""

from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ramet.admission.admission import Admission
from ramet.admission.demand import NOTHING, Demand, Resource, demand_of
from ramet.admission.ledger import InsufficientResources, Limit
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from tests.admission.records import MEMORY_BYTES, RUNTIME, record

LIMIT = Demand(cpu_count=6, memory_bytes=8 * MEMORY_BYTES, disk_bytes=10 << 30)
LIMITS = tuple(Limit(resource, amount) for resource, amount in zip(Resource, LIMIT, strict=True))
MEMORIES = st.integers(1, 3).map(lambda count: count * MEMORY_BYTES)


class WriteFailed(Exception):
    """The record cannot be written."""


def test_a_refused_change_is_not_entered_and_holds_what_it_held() -> None:
    admission = Admission((Limit(Resource.MEMORY, MEMORY_BYTES),))
    admission.take_up(record("a"))
    admission.take_up(record("b", State.STOPPED))
    held = admission.ledger.held("b")
    with pytest.raises(InsufficientResources, match="for instance b"), admission.changing(record("b")):
        pytest.fail("entered")
    assert admission.ledger.held("b") == held


def test_a_change_that_cannot_be_written_holds_what_it_held() -> None:
    admission = Admission()
    admission.take_up(record("a", State.STOPPED))
    before = admission.ledger.total
    with suppress(WriteFailed), admission.changing(record("a", State.INITIALIZING)):
        raise WriteFailed
    assert admission.ledger.total == before


def test_unknown_is_never_refused() -> None:
    admission = Admission((Limit(Resource.MEMORY, 0),))
    admission.take_up(record("a", State.STOPPED))
    with admission.changing(record("a", State.UNKNOWN)):
        assert admission.ledger.total.memory_bytes == MEMORY_BYTES


def test_what_is_no_longer_needed_is_held_until_that_is_written() -> None:
    admission = Admission()
    admission.take_up(record("a"))
    with admission.changing(record("a", State.STOPPED)):
        assert admission.ledger.total.memory_bytes == MEMORY_BYTES
    assert admission.ledger.total.memory_bytes == 0


class Operations(RuleBasedStateMachine):
    """Random operations, against sums made from scratch of what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(LIMITS)
        self.records: dict[InstanceId, InstanceRecord] = {}
        self.waiting: dict[InstanceId, InstanceId] = {}  # Children without a capture, and their source.
        self.open: dict[str, int] = {}
        self.mapped: dict[InstanceId, tuple[str, int]] = {}
        self.minted = 0

    def needed(self) -> Demand:
        """Return what must be held at least, of all that there is."""
        captures = {**dict(self.mapped.values()), **self.open}
        demands = [*map(demand_of, self.records.values()), Demand(memory_bytes=sum(captures.values()))]
        return Demand(*map(sum, zip(*demands, strict=True)))

    def fits(self, more: Demand) -> bool:
        total = self.admission.ledger.total
        return all(
            not asked or held + asked <= limit for held, asked, limit in zip(total, more, LIMIT, strict=True)
        )

    def choose(self, data: st.DataObject) -> InstanceRecord:
        return self.records[data.draw(st.sampled_from(sorted(self.records)))]

    @rule(data=st.data(), memory_bytes=MEMORIES, cpu_count=st.integers(1, 2), fails=st.booleans())
    def mint(self, data: st.DataObject, memory_bytes: int, cpu_count: int, fails: bool) -> None:
        running = [found for found in self.records.values() if found.state is State.RUNNING]
        source = data.draw(st.sampled_from([None, *running]))
        self.minted += 1
        new = record(f"i{self.minted}", State.CREATED, cpu_count=cpu_count, memory_bytes=memory_bytes)
        before = self.admission.ledger.total
        capture_bytes = 0
        if source is not None and source.id not in self.waiting.values():
            capture_bytes = source.spec.memory_bytes
        demand = demand_of(new)
        whole = demand._replace(memory_bytes=demand.memory_bytes + capture_bytes)
        fits = self.fits(whole)
        try:
            with self.admission.minting(new, source):
                assert fits, "admitted without room"
                if fails:
                    raise WriteFailed
        except InsufficientResources:
            assert not fits, "refused though there is room"
            assert self.admission.ledger.total == before
        except WriteFailed:
            assert self.admission.ledger.total == before
        else:
            self.records[new.id] = new
            if source is not None:
                self.waiting[new.id] = source.id

    @precondition(lambda self: self.records)
    @rule(data=st.data(), state=st.sampled_from(State), fails=st.booleans(), has_runtime=st.booleans())
    def save(self, data: st.DataObject, state: State, fails: bool, has_runtime: bool) -> None:
        old = self.choose(data)
        spec = old.spec
        new = record(
            old.name,
            state,
            cpu_count=spec.vcpu_count,
            memory_bytes=spec.memory_bytes,
            runtime=RUNTIME if has_runtime else None,
            is_deleting=state is State.SHUTDOWN and data.draw(st.booleans()),
        )
        before = self.admission.ledger.held(old.id)
        more = Demand(*(max(0, b - a) for a, b in zip(before, demand_of(new), strict=True)))
        fits = self.fits(more) or state is State.UNKNOWN
        try:
            with self.admission.changing(new):
                assert fits, "admitted without room"
                total, needed = self.admission.ledger.total, self.needed()
                assert all(held >= need for held, need in zip(total, needed, strict=True))
                if fails:
                    raise WriteFailed
        except InsufficientResources:
            assert not fits, "refused though there is room"
            assert self.admission.ledger.held(old.id) == before
        except WriteFailed:
            if state is State.UNKNOWN:
                self.records[new.id] = new  # It is so, written or not.
            else:
                assert self.admission.ledger.held(old.id) == before
        else:
            self.records[new.id] = new
            if not demand_of(new).cpu_count:
                self.mapped.pop(new.id, None)
            if state is not State.CREATED:
                self.waiting.pop(new.id, None)

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        gone = self.choose(data).id
        self.admission.forget(gone)
        del self.records[gone]
        self.waiting.pop(gone, None)
        self.mapped.pop(gone, None)

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def begin_capture(self, data: st.DataObject) -> None:
        source = self.choose(data)
        is_expected = source.id in self.waiting.values()
        fits = is_expected or self.fits(Demand(memory_bytes=source.spec.memory_bytes))
        self.minted += 1
        try:
            self.admission.captures.begin(source, f"c{self.minted}")
        except InsufficientResources:
            assert not fits, "refused though there is room"
            return
        assert fits, "admitted without room"
        self.open[f"c{self.minted}"] = source.spec.memory_bytes
        for child in [child for child, its in self.waiting.items() if its == source.id]:
            del self.waiting[child]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def map_capture(self, data: st.DataObject) -> None:
        capture = data.draw(st.sampled_from(sorted(self.open)))
        children = [i for i, found in self.records.items() if found.state is State.CREATED]
        if children:
            child = data.draw(st.sampled_from(sorted(set(children) - self.mapped.keys()) or children))
            if child not in self.mapped:
                self.admission.captures.map(child, capture)
                self.mapped[child] = (capture, self.open[capture])
                self.waiting.pop(child, None)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close_capture(self, data: st.DataObject) -> None:
        capture = data.draw(st.sampled_from(sorted(self.open)))
        self.admission.captures.close(capture)
        del self.open[capture]

    @rule()
    def restart(self) -> None:
        """Count all again, as a new daemon finds it: half-made instances are gone, nothing is refused."""
        self.open.clear()
        self.waiting.clear()
        for instance in [i for i, found in self.records.items() if found.state is State.CREATED]:
            del self.records[instance]
            self.mapped.pop(instance, None)
        self.admission = Admission(LIMITS)
        for found in self.records.values():
            self.admission.take_up(found)
            if found.id in self.mapped:
                capture, memory_bytes = self.mapped[found.id]
                self.admission.captures.find(found.id, capture, memory_bytes)

    @invariant()
    def enough_is_held_and_at_rest_no_more(self) -> None:
        total, needed = self.admission.ledger.total, self.needed()
        assert all(held >= need for held, need in zip(total, needed, strict=True)), (total, needed)
        if not self.waiting:
            assert total == needed
        captures = {**dict(self.mapped.values()), **self.open}
        expected = len(set(self.waiting.values()))
        assert self.admission.captures.count == len(captures) + expected

    def teardown(self) -> None:
        for instance in list(self.records):
            self.admission.forget(instance)
        for capture in list(self.open):
            self.admission.captures.close(capture)
        assert self.admission.ledger.total == NOTHING
        assert (self.admission.ledger.owner_count, self.admission.captures.count) == (0, 0)


TestOperations = Operations.TestCase
TestOperations.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
