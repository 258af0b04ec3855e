"""One task owns each instance: requests in order, outcomes kept, mistakes contained."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from ramet.core.errors import Broken
from ramet.core.spec import InstanceRecord, State
from ramet.instance.actions import Action, Boot, Destroy, Watch
from ramet.instance.actor import QUEUE_LENGTH_MAX, Actor, QueueFull
from ramet.instance.events import Begin, Booted, DeleteAsked, Emit, LayerSwitched, Ready, StopAsked
from ramet.instance.fleet_types import InstanceNotFound, WrongState
from tests.instance.test_transitions import LAYER, NEW, RUNNING, RUNTIME

pytestmark = pytest.mark.anyio

Perform = Callable[[InstanceRecord, Action, Emit], Awaitable[None]]


async def do_nothing(record: InstanceRecord, action: Action, emit: Emit) -> None:
    """Succeed at once; a VMM goes on for ever."""
    if isinstance(action, Watch):
        await anyio.sleep_forever()


class Recorder:
    """A performer that does what a test says, and keeps what was saved."""

    def __init__(self, perform: Perform = do_nothing) -> None:
        self._perform = perform
        self.saved: list[InstanceRecord] = []
        self.is_full = False

    async def perform(self, record: InstanceRecord, action: Action, emit: Emit) -> None:
        await self._perform(record, action, emit)

    def save(self, record: InstanceRecord) -> None:
        if self.is_full:
            raise sqlite3.OperationalError("database or disk is full")
        self.saved.append(record)


@asynccontextmanager
async def running(record: InstanceRecord, recorder: Recorder) -> AsyncIterator[Actor]:
    actor = Actor(record, recorder, lambda former, record: None, lambda instance: None)
    async with anyio.create_task_group() as group:
        group.start_soon(actor.run)
        yield actor
        group.cancel_scope.cancel()


async def test_a_record_is_saved_before_anything_is_done_about_it() -> None:
    seen: list[State] = []

    async def perform(record: InstanceRecord, action: Action, emit: Emit) -> None:
        seen.append(recorder.saved[-1].state)

    recorder = Recorder(perform)
    async with running(RUNNING, recorder) as actor:
        await actor.ask(StopAsked())
        await anyio.wait_all_tasks_blocked()
    assert seen == [State.SHUTDOWN]


async def test_a_request_that_the_state_forbids_changes_nothing() -> None:
    recorder = Recorder()
    async with running(NEW, recorder) as actor:
        before = actor.record
        with pytest.raises(WrongState):
            await actor.ask(StopAsked())
        assert actor.record is before
    assert recorder.saved == []


async def test_too_many_requests_are_refused_but_no_outcome_is() -> None:
    actor = Actor(RUNNING, Recorder(), lambda former, record: None, lambda instance: None)
    async with anyio.create_task_group() as group:
        for _ in range(QUEUE_LENGTH_MAX):
            group.start_soon(actor.ask, StopAsked())
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await actor.ask(StopAsked())
        actor.tell(Ready())
        group.cancel_scope.cancel()


@pytest.mark.parametrize("mistake", [ZeroDivisionError("a mistake"), Broken("a mistake")])
async def test_an_error_while_booting_ends_in_stopped_and_the_actor_serves_on(mistake: Exception) -> None:
    async def perform(record: InstanceRecord, action: Action, emit: Emit) -> None:
        if isinstance(action, Boot):
            raise mistake

    async with running(NEW, Recorder(perform)) as actor:
        actor.tell(Begin())
        record = await actor.wait_until(lambda record: record.state is State.STOPPED)
        assert "a mistake" in record.state_error
        assert isinstance(actor.failure, Broken)
        await actor.ask(DeleteAsked())
        await actor.wait_until(lambda record: False)
        assert actor.is_gone


@pytest.mark.parametrize("mistake", [ZeroDivisionError("a mistake"), Broken("a mistake")])
async def test_an_error_while_watching_makes_the_instance_unknown_and_deletable(mistake: Exception) -> None:
    async def perform(record: InstanceRecord, action: Action, emit: Emit) -> None:
        if isinstance(action, Watch):
            raise mistake

    async with running(NEW, Recorder(perform)) as actor:
        actor.tell(Booted(RUNTIME, LAYER, 1.0))
        record = await actor.wait_until(lambda record: record.state is State.UNKNOWN)
        assert "a mistake" in record.state_error
        await actor.ask(DeleteAsked())
        await actor.wait_until(lambda record: False)
        assert actor.is_gone


async def test_an_error_while_destroying_keeps_the_instance_and_it_can_be_tried_again() -> None:
    mistakes = [ZeroDivisionError("a mistake"), Broken("another")]

    async def perform(record: InstanceRecord, action: Action, emit: Emit) -> None:
        if isinstance(action, Destroy) and mistakes:
            raise mistakes.pop(0)

    async with running(RUNNING, Recorder(perform)) as actor:
        for expected in ("a mistake", "another"):
            await actor.ask(DeleteAsked())
            record = await actor.wait_until(lambda record: record.state is State.UNKNOWN)
            assert expected in record.state_error
        await actor.ask(DeleteAsked())
        await actor.wait_until(lambda record: False)
        assert actor.is_gone


async def test_a_request_whose_record_cannot_be_written_is_refused_and_an_outcome_stands() -> None:
    recorder = Recorder()
    async with running(RUNNING, recorder) as actor:
        recorder.is_full = True
        with pytest.raises(Broken, match="cannot be written"):
            await actor.ask(StopAsked())
        assert actor.record.state is State.RUNNING
        actor.tell(LayerSwitched(LAYER, RUNNING.layer or LAYER))
        recorder.is_full = False
        assert (await actor.ask(StopAsked())).state is State.SHUTDOWN


async def test_requests_that_are_too_late_are_told_so() -> None:
    async def perform(record: InstanceRecord, action: Action, emit: Emit) -> None:
        if isinstance(action, Destroy):
            waiting.append(asyncio.ensure_future(actor.ask(StopAsked())))

    waiting: list[asyncio.Future[InstanceRecord]] = []
    async with running(RUNNING, Recorder(perform)) as actor:
        await actor.ask(DeleteAsked())
        await actor.wait_until(lambda record: False)
        with pytest.raises((InstanceNotFound, WrongState)):
            await waiting[0]
        with pytest.raises(InstanceNotFound):
            await actor.ask(StopAsked())


async def test_what_happened_is_still_written_when_the_daemon_leaves() -> None:
    recorder = Recorder()
    async with running(RUNNING, recorder) as actor:
        pass
    await actor.inform(LayerSwitched(LAYER, RUNNING.layer or LAYER))
    assert recorder.saved[-1].layer == LAYER


async def test_nothing_is_written_of_an_instance_that_is_gone() -> None:
    recorder = Recorder()
    async with running(RUNNING, recorder) as actor:
        await actor.ask(DeleteAsked())
        await actor.wait_until(lambda record: False)
    before = list(recorder.saved)
    await actor.inform(LayerSwitched(LAYER, RUNNING.layer or LAYER))
    assert recorder.saved == before
