"""Admitted or refused at once: what an instance is about to hold is held before anything is done for it.

Everything follows from records (`demand_of`). Whoever changes one does it inside `changing`: what it needs
more is held before, what it needs no more is given back after. For a moment too much is counted; too little,
never.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ramet.admission.captures import CaptureMemory
from ramet.admission.demand import demand_of, has_vmm
from ramet.admission.ledger import Ledger, Limit
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State


class Admission:
    """What instances and captures hold of this host. Without `limits` all is counted and nothing refused."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self.ledger = Ledger(limits)
        self.captures = CaptureMemory(self.ledger)

    @contextmanager
    def changing(self, record: InstanceRecord) -> Iterator[None]:
        """Make `record` an instance's inside; if that fails, it holds what it held.

        A change to Unknown is never refused: nobody asks for it, and it says what is so.

        Raises:
            InsufficientResources: it needs more than what is free; the inside is not entered.
        """
        ledger, owner = self.ledger, record.id
        before, need = ledger.held(owner), demand_of(record)
        during = before.larger(need)
        if record.state is State.UNKNOWN:
            ledger.note(owner, during)
        else:
            ledger.admit(owner, during, f"instance {record.name}")
        try:
            yield
        except BaseException:
            if record.state is not State.UNKNOWN:
                ledger.note(owner, before)
            raise
        ledger.note(owner, need)
        if not has_vmm(record):
            self.captures.leave(owner)
        elif record.state is not State.CREATED:
            self.captures.stop_expecting(owner)

    @contextmanager
    def minting(self, record: InstanceRecord, source: InstanceRecord | None) -> Iterator[None]:
        """Mint a new instance inside; `source` is the running one that it is to be forked from.

        Raises:
            InsufficientResources: it, or a capture of its source, needs more than what is free.
        """
        try:
            if source is not None:
                self.captures.expect(source, record.id)
            with self.changing(record):
                yield
        except BaseException:
            self.captures.leave(record.id)
            raise

    def forget(self, instance: InstanceId) -> None:
        """Give back all that an instance held, which is gone."""
        self.captures.leave(instance)
        self.ledger.release(instance)

    def take_up(self, record: InstanceRecord) -> None:
        """Count an instance that is there, whatever is free. For startup."""
        self.ledger.note(record.id, demand_of(record))
