"""One task owns each instance.

Everybody else enqueues: requests of users, outcomes of actions, what a guest or the host did. The actor takes
one event at a time, lets `transitions.step` decide, makes the new record durable, and only then has the
actions performed, each as a child task whose outcome is an event again. So a record on disk is never behind
what was done.

What goes wrong in an action, a mistake of ours included, ends with this instance: it becomes an event, and
the instance visibly Stopped or Unknown. The daemon and everybody else's guests go on.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import anyio
import structlog
from anyio.abc import TaskGroup

from ramet.core.errors import Broken, Exhausted, RametError
from ramet.core.ids import InstanceId
from ramet.core.phases import Phases
from ramet.core.spec import InstanceRecord, State
from ramet.instance.actions import Action, AwaitGuest, Boot, Copy, Destroy, Fork, Start, Suspend, Wake
from ramet.instance.events import (
    ActionFailed,
    AttachAsked,
    DeleteAsked,
    DestroyFailed,
    DetachAsked,
    Emit,
    Event,
    Failed,
    PoolAsked,
    RestartDue,
    RestoreAsked,
    Rewound,
    StandbyAsked,
    StartAsked,
    StopAsked,
    SuspendFailed,
    UpdateAsked,
    WakeFailed,
)
from ramet.instance.fleet_types import InstanceNotFound
from ramet.instance.transitions import step

SAVE_RETRY_S: Final = 2.0
"""How long until a record that could not be written is tried again."""
QUEUE_LENGTH_MAX: Final = 256
"""Requests that may wait. Outcomes are not counted: there are no more of them than actions."""

_REFUSABLE: Final = (
    PoolAsked,
    UpdateAsked,
    AttachAsked,
    DetachAsked,
    StartAsked,
    RestartDue,
    StandbyAsked,
    RestoreAsked,
    Rewound,
    StopAsked,
)
"""Requests that are refused if the record they lead to cannot be written."""
_FAILURES: Final = (Failed, SuspendFailed, WakeFailed)

log = structlog.get_logger(__name__)


class QueueFull(Exhausted):
    """The instance has too many requests waiting."""

    code = "instance_busy"
    remedy_default = "try again when it has done what it was asked for"


class Performer(Protocol):
    """Carries actions out. Knows the host; decides nothing."""

    async def perform(self, record: InstanceRecord, action: Action, emit: Emit) -> None:
        """Do it; tell the outcome by `emit`. Cancelled: the daemon leaves, the guest does not.

        Raises:
            RametError: it failed.
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
        self,
        record: InstanceRecord,
        performer: Performer,
        on_changed: Callable[[InstanceRecord, InstanceRecord], None],
        on_gone: Callable[[InstanceId], None],
    ) -> None:
        """`on_changed` is told what the record was and what it is now."""
        self.record = _in_phase(record)
        self.failure: RametError | None = None
        """Why making, starting, suspending or waking it failed, for the one who asked."""
        self.is_gone = False
        self.is_unsaved = False
        """What has happened could not be written; that is tried again with every event and after a while."""
        self._is_over = False  # Gone, or the daemon leaves.
        self._performer, self._on_changed, self._on_gone = performer, on_changed, on_gone
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._changed = asyncio.Event()

    def tell(self, event: Event) -> None:
        """Enqueue what happened."""
        self._queue.put_nowait(_Request(event, None))

    async def ask(self, event: Event) -> InstanceRecord:
        """Enqueue a request and return the record it led to, its actions not yet done.

        Raises:
            WrongState: the state forbids it.
            QueueFull: the actor does not keep up.
            InstanceNotFound: it is gone, or went before its turn came.
        """
        if self._is_over:
            raise self.gone()
        if self._queue.qsize() >= QUEUE_LENGTH_MAX:
            raise QueueFull(f"instance {self.record.name} has {QUEUE_LENGTH_MAX} requests waiting")
        accepted: asyncio.Future[InstanceRecord] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Request(event, accepted))
        return await accepted

    async def inform(self, event: Event) -> None:
        """Tell what happened; returns when the record says so, even if nobody acts any more."""
        if self._is_over:
            self._take(_Request(event, None), None)
            return
        noted: asyncio.Future[InstanceRecord] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Request(event, noted))
        await noted

    async def wait_until(self, condition: Callable[[InstanceRecord], bool]) -> InstanceRecord:
        """Return the record as soon as `condition` holds for it, or the instance is gone."""
        while not self.is_gone and not condition(self.record):
            await self._changed.wait()
        return self.record

    async def run(self) -> None:
        """Serve until the instance is gone or we are cancelled; children end with us."""
        try:
            async with anyio.create_task_group() as children:
                try:
                    while not self.is_gone:
                        await self._take_next(children)
                finally:
                    self._end_queue()  # Children that end now may wait for what they tell to be noted.
                children.cancel_scope.cancel()
        finally:
            self._end_queue()

    def _end_queue(self) -> None:
        """Note what has happened and refuse what is asked: nobody acts any more."""
        self._is_over = True
        while not self._queue.empty():
            request = self._queue.get_nowait()
            if not isinstance(request.event, (*_REFUSABLE, DeleteAsked)):
                self._take(request, None)
            elif request.accepted is not None and not request.accepted.done():
                request.accepted.set_exception(self.gone())

    async def _take_next(self, children: TaskGroup) -> None:
        if not self.is_unsaved:
            self._take(await self._queue.get(), children)
            return
        with anyio.move_on_after(SAVE_RETRY_S):
            self._take(await self._queue.get(), children)
            return
        self._save(self.record, must_stand=True)

    def _take(self, request: _Request, children: TaskGroup | None) -> None:
        accepted = request.accepted
        try:
            record, actions = step(self.record, request.event)
            if record is not self.record:
                record = _in_phase(record)
                self._save(record, must_stand=not isinstance(request.event, _REFUSABLE))
        except RametError as error:
            if accepted is None:
                log.error("event_refused", instance=self.record.id, event=request.event, error=str(error))
            elif not accepted.done():
                accepted.set_exception(error)
            return
        if record is not self.record:
            if isinstance(request.event, _FAILURES):
                self.failure = request.event.error
            elif isinstance(request.event, StartAsked | RestartDue | StandbyAsked | RestoreAsked):
                self.failure = None
            former, self.record = self.record, record
            if not self.is_gone:
                self._on_changed(former, record)
            self._notify()
        if accepted is not None and not accepted.done():
            accepted.set_result(record)
        if children is None:
            return  # Nobody acts any more.
        for action in actions:
            children.start_soon(self._perform, action, children)

    def _save(self, record: InstanceRecord, *, must_stand: bool) -> None:
        """Write a record. If it fails, what has happened, and what frees space (`must_stand`), goes on."""
        if self.is_gone or record.state is State.CREATED:
            return
        try:
            self._performer.save(record)
            self.is_unsaved = False
        except Exception as error:
            if not must_stand:
                if isinstance(error, RametError):
                    raise
                raise _internal("its record cannot be written", error) from error
            if not self.is_unsaved:
                log.exception("record_not_saved", instance=record.id, state=record.state)
            self.is_unsaved = True

    async def _perform(self, action: Action, children: TaskGroup) -> None:
        try:
            await self._performer.perform(self.record, action, self.tell)
        except RametError as error:
            self.tell(_failure(action, error))
            return
        except Exception as error:
            log.exception("action_failed_unexpectedly", instance=self.record.id, action=action)
            self.tell(_failure(action, _internal(type(action).__name__, error)))
            return
        if isinstance(action, Destroy):
            self.is_gone = True
            self._on_gone(self.record.id)
            self._notify()
            children.cancel_scope.cancel()

    def gone(self) -> InstanceNotFound:
        """Return the error that says it is no more."""
        return InstanceNotFound(f"instance {self.record.name} is gone")

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _in_phase(record: InstanceRecord) -> InstanceRecord:
    """Return the record, its phases as they are when it has come to its state now."""
    phases = record.phases or Phases(record.state.value, time.time())
    return replace(record, phases=phases.moved(record.state.value, time.time()))


def _failure(action: Action, error: RametError) -> Event:
    match action:
        case Boot() | Fork() | Copy() | Start() | AwaitGuest():
            return Failed(error, time.time())
        case Suspend():
            return SuspendFailed(error)
        case Wake():
            return WakeFailed(error)
        case Destroy():
            return DestroyFailed(error)
        case _:
            return ActionFailed(error)


def _internal(what: str, error: Exception) -> Broken:
    return Broken(f"internal error: {what}: {type(error).__name__}: {error}", remedy="see the daemon's log")
