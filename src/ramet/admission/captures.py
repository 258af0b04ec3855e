"""The memory that captures take, counted from the wish for one to the end of the last VMM that maps it.

A capture is as large as its source's memory at most, and it does not go when the daemon closes it: every
child that runs on it maps it. So a capture is held by the daemon while it is open there and by each of those
children, and given back when the last of them lets go.

A child that is minted expects a capture of its source: the first one has it admitted, before any of them
begins, and the next capture of that source takes over what was admitted. So a burst is never minted whole and
then has no room for what all of it needs.
"""

from ramet.admission.demand import Demand
from ramet.admission.ledger import Ledger
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord


class CaptureMemory:
    """Which captures there are and who needs them. Synchronous throughout."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._awaited: dict[InstanceId, set[InstanceId]] = {}
        """By source, the children that a capture to come has been admitted for."""
        self._awaiting: dict[InstanceId, InstanceId] = {}
        """By child, the source it awaits a capture of."""
        self._users: dict[str, set[InstanceId]] = {}
        """By capture, the children that map it."""
        self._used: dict[InstanceId, str] = {}
        """By child, the capture it maps."""
        self._open: set[str] = set()

    @property
    def count(self) -> int:
        """How many captures there are, those that are only admitted among them."""
        return len(self._users) + len(self._awaited)

    @property
    def memory_bytes(self) -> int:
        """How much memory is held for them."""
        owners = [*map(_taken, self._users), *map(_expected, self._awaited)]
        return sum(self._ledger.held(owner).memory_bytes for owner in owners)

    def expect(self, source: InstanceRecord, child: InstanceId) -> None:
        """Have room for a capture of `source` that `child` is to be made of.

        Raises:
            InsufficientResources: there is none; nothing is held for `child`.
        """
        if source.id not in self._awaited:
            self._admit(_expected(source.id), source)
            self._awaited[source.id] = set()
        self._awaited[source.id].add(child)
        self._awaiting[child] = source.id

    def begin(self, source: InstanceRecord, capture: str) -> None:
        """Hold the memory of `capture`, which is about to be taken; `close` ends that.

        Raises:
            InsufficientResources: nobody expected it, and there is no room.
        """
        waiting = self._awaited.pop(source.id, None)
        if waiting is None:
            self._admit(_taken(capture), source)
        else:
            for child in waiting:
                del self._awaiting[child]
            self._ledger.note(_taken(capture), self._ledger.held(_expected(source.id)))
            self._ledger.release(_expected(source.id))
        self._users[capture] = set()
        self._open.add(capture)

    def map(self, child: InstanceId, capture: str) -> None:
        """Note that the VMM of `child` is about to map `capture`, which is open."""
        self.stop_expecting(child)
        self._users[capture].add(child)
        self._used[child] = capture

    def find(self, child: InstanceId, capture: str, memory_bytes: int) -> None:
        """Note that the VMM of `child`, found running, maps `capture`. For startup."""
        if capture not in self._users:
            self._users[capture] = set()
            self._ledger.note(_taken(capture), Demand(memory_bytes=memory_bytes))
        self.map(child, capture)

    def close(self, capture: str) -> None:
        """Note that the daemon has `capture` open no more."""
        self._open.discard(capture)
        self._free_if_unused(capture)

    def stop_expecting(self, child: InstanceId) -> None:
        """Note that `child` needs no capture to come, or none any more. Harmless if it awaits none."""
        source = self._awaiting.pop(child, None)
        if source is not None:
            self._awaited[source].discard(child)
            if not self._awaited[source]:
                del self._awaited[source]
                self._ledger.release(_expected(source))

    def leave(self, child: InstanceId) -> None:
        """Note that `child` has no VMM any more, and awaits nothing. Harmless if it never had."""
        self.stop_expecting(child)
        capture = self._used.pop(child, None)
        if capture is not None:
            self._users[capture].discard(child)
            self._free_if_unused(capture)

    def _admit(self, owner: str, source: InstanceRecord) -> None:
        demand = Demand(memory_bytes=source.spec.memory_bytes_max)
        self._ledger.admit(owner, demand, f"a capture of instance {source.name}")

    def _free_if_unused(self, capture: str) -> None:
        if capture not in self._open and not self._users[capture]:
            del self._users[capture]
            self._ledger.release(_taken(capture))


def _expected(source: InstanceId) -> str:
    return f"capture of {source}"


def _taken(capture: str) -> str:
    return f"capture {capture}"
