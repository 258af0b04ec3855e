"""One task owns each instance.

Everybody else enqueues: requests of users, outcomes of actions, what a guest or the host did. The actor takes
one event at a time, lets `transitions.step` decide, makes the new record durable, and only then has the
actions performed, each as a child task whose outcome is an event again. So a record on disk is never behind what was done.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup

from ramet.core.errors import Exhausted, RametError
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.instance.transitions import Action, Destroy, DestroyFailed, Emit, Event, Failed, step

QUEUE_LENGTH_MAX: Final = 256


class QueueFull(Exhausted):
    """The instance has too many requests waiting."""

    code = "instance_busy"


class Performer(Protocol):
    """Carries actions out. Knows the host; decides nothing."""

    async def perform(self, record: InstanceRecord, action: Action, emit: Emit) -> None:
        """Do it; tell the outcome by `emit`. Cancelled: the daemon leaves, the guest does not.

        Raises:
            RametError: it failed; for Destroy only. Other actions emit their failure.
        """
        ...

    def save(self, record: InstanceRecord) -> None:
        """Make a record durable, with the end of the operation that led to it."""
        ...


@dataclass(frozen=True, slots=True)
class _Request:
    event: Event
    accepted: asyncio.Future[InstanceRecord] | None


class Actor:
    """The owner of one instance. `record` is what is published; it never goes back."""

    def __init__(
        self, record: InstanceRecord, performer: Performer, on_gone: Callable[[InstanceId], None]
    ) -> None:
        self.record = record
        self.failure: RametError | None = None
        """Why making it failed, for the one who asked."""
        self.is_gone = False
        self._performer, self._on_gone = performer, on_gone
        self._queue: asyncio.Queue[_Request] = asyncio.Queue(QUEUE_LENGTH_MAX)
        self._changed = asyncio.Event()

    def tell(self, event: Event) -> None:
        """Enqueue what happened.

        Raises:
            QueueFull: the actor does not keep up.
        """
        self._put(_Request(event, None))

    async def ask(self, event: Event) -> InstanceRecord:
        """Enqueue a request and return the record it led to, its actions not yet done.

        Raises:
            WrongState: the state forbids it.
            QueueFull: the actor does not keep up.
        """
        accepted: asyncio.Future[InstanceRecord] = asyncio.get_running_loop().create_future()
        self._put(_Request(event, accepted))
        return await accepted

    async def wait_until(self, condition: Callable[[InstanceRecord], bool]) -> InstanceRecord:
        """Return the record as soon as `condition` holds for it, or the instance is gone."""
        while not self.is_gone and not condition(self.record):
            await self._changed.wait()
        return self.record

    async def run(self) -> None:
        """Serve until the instance is gone or we are cancelled; children end with us."""
        async with anyio.create_task_group() as children:
            while not self.is_gone:
                request = await self._queue.get()
                try:
                    record, actions = step(self.record, request.event)
                except RametError as error:
                    if request.accepted is None:
                        raise
                    if not request.accepted.done():
                        request.accepted.set_exception(error)
                    continue
                self._publish(record, request.event)
                if request.accepted is not None and not request.accepted.done():
                    request.accepted.set_result(record)
                for action in actions:
                    children.start_soon(self._perform, action, children)
            children.cancel_scope.cancel()

    def _publish(self, record: InstanceRecord, event: Event) -> None:
        if isinstance(event, Failed):
            self.failure = event.error
        if record is self.record:
            return
        if record.state is not State.CREATED:
            self._performer.save(record)
        self.record = record
        self._notify()

    async def _perform(self, action: Action, children: TaskGroup) -> None:
        try:
            await self._performer.perform(self.record, action, self.tell)
        except RametError as error:
            if not isinstance(action, Destroy):
                raise
            self.tell(DestroyFailed(error))
            return
        if isinstance(action, Destroy):
            self.is_gone = True
            self._on_gone(self.record.id)
            self._notify()
            children.cancel_scope.cancel()

    def _put(self, request: _Request) -> None:
        try:
            self._queue.put_nowait(request)
        except asyncio.QueueFull as full:
            raise QueueFull(f"instance {self.record.name} has {QUEUE_LENGTH_MAX} requests waiting") from full

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
