"""Names are held from minting to the end, and instances are found by what people write."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from ramet.core.errors import Exhausted, Invalid
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, RestorePoint, State
from ramet.instance.actions import Action
from ramet.instance.events import Emit
from ramet.instance.fleet import Fleet
from ramet.instance.fleet_types import (
    ExecCommand,
    ExecSession,
    ForkPoolStatus,
    InstanceAmbiguous,
    InstanceNotFound,
    NameTaken,
    PathStat,
    WrongState,
)
from ramet.instance.host import LogSource
from tests.instance.test_actor import Perform, Recorder, do_nothing
from tests.instance.test_transitions import NEW, RUNNING

pytestmark = pytest.mark.anyio


class Host(Recorder):
    """A host of which nothing is needed but that it mints."""

    def __init__(self, perform: Perform = do_nothing, slot_count: int = 100) -> None:
        super().__init__(perform)
        self._free = slot_count

    def mint(self, record: InstanceRecord, pool: str | None = None) -> InstanceRecord:
        if not self._free:
            raise Exhausted("no slot is free")
        self._free -= 1
        return record

    def addresses(self, record: InstanceRecord) -> tuple[str | None, str | None]:
        return None, None

    def network_degraded(self, record: InstanceRecord) -> str | None:
        return None

    def fork_pool(self, record: InstanceRecord) -> ForkPoolStatus | None:
        return None

    def health(self, record: InstanceRecord) -> None:
        return None

    def timings_ms(self, instance: InstanceId) -> dict[str, float]:
        return {}

    async def open_exec(self, record: InstanceRecord, command: ExecCommand) -> ExecSession:
        raise NotImplementedError

    async def stat_path(self, record: InstanceRecord, path: str, *, follow_links: bool) -> PathStat:
        raise NotImplementedError

    def open_archive(
        self, record: InstanceRecord, path: str, *, follow_links: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise NotImplementedError

    async def put_archive(
        self, record: InstanceRecord, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool
    ) -> None:
        raise NotImplementedError

    def restore_point(
        self, record: InstanceRecord, *, with_memory: bool
    ) -> AbstractAsyncContextManager[RestorePoint]:
        raise NotImplementedError

    def logs(
        self,
        record: InstanceRecord,
        source: LogSource,
        tail: int,
        *,
        follow: bool,
        is_alive: Callable[[], bool],
    ) -> AsyncIterator[str]:
        raise NotImplementedError


def named(name: str, instance: str, state: State = State.RUNNING) -> InstanceRecord:
    identity = replace(RUNNING.identity, id=InstanceId(instance), name=name)
    return replace(RUNNING, identity=identity, state=state)


@asynccontextmanager
async def running(records: Sequence[InstanceRecord], host: Host | None = None) -> AsyncIterator[Fleet]:
    fleet = Fleet(host or Host())
    async with anyio.create_task_group() as group:
        await group.start(fleet.run, [(record, None) for record in records])
        yield fleet
        group.cancel_scope.cancel()


async def test_an_instance_is_found_by_name_id_and_unique_beginning() -> None:
    async with running([named("web", "abc1"), named("db", "abd2")]) as fleet:
        assert {fleet.get(ref).record.id for ref in ("web", "abc1", "abc")} == {"abc1"}
        with pytest.raises(InstanceAmbiguous):
            fleet.get("ab")
        for ref in ("x", "", "abc12"):
            with pytest.raises(InstanceNotFound):
                fleet.get(ref)


async def test_a_name_comes_before_the_beginning_of_an_id() -> None:
    async with running([named("web", "abc1"), named("abc", "xyz2")]) as fleet:
        assert fleet.get("abc").record.id == "xyz2"


async def test_a_name_is_held_while_its_instance_is_being_made() -> None:
    async def perform(record: InstanceRecord, action: Action, emit: Emit) -> None:
        await anyio.sleep_forever()

    async with running([], Host(perform)) as fleet, anyio.create_task_group() as group:
        group.start_soon(fleet.create, "web", NEW.spec)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(NameTaken):
            await fleet.create("web", NEW.spec)
        group.cancel_scope.cancel()


async def test_a_name_is_free_when_its_instance_is_gone() -> None:
    async with running([named("web", "abc1")]) as fleet:
        await fleet.delete("web")
        with pytest.raises(InstanceNotFound):
            fleet.get("web")
        assert fleet.list() == []


@pytest.mark.parametrize("name", ["", "Web", "-web", "web-", "a" * 64, "w_b", "w.b"])
async def test_what_is_no_name_is_refused(name: str) -> None:
    async with running([]) as fleet:
        with pytest.raises(Invalid):
            await fleet.create(name, NEW.spec)


async def test_a_host_that_is_full_refuses_and_holds_no_name() -> None:
    async with running([], Host(slot_count=0)) as fleet:
        with pytest.raises(Exhausted):
            await fleet.create("web", NEW.spec)
        assert fleet.list() == []


async def test_of_a_fork_each_child_has_its_own_outcome() -> None:
    async def perform(record: InstanceRecord, action: Action, emit: Emit) -> None:
        raise ZeroDivisionError("it is not about this")

    async with running([named("web", "abc1")], Host(perform, slot_count=1)) as fleet:
        outcomes = await fleet.fork("web", ["web", "no name", "first", "second"])
        codes = [outcome.error and outcome.error.code for outcome in outcomes]
        assert codes == ["name_taken", "bad_request", "delete_incomplete", "insufficient_resources"]


@pytest.mark.parametrize("state", [State.INITIALIZING, State.PAUSED, State.SHUTDOWN, State.UNKNOWN])
async def test_what_is_between_two_states_can_neither_be_forked_nor_run_commands(state: State) -> None:
    async with running([named("web", "abc1", state)]) as fleet:
        with pytest.raises(WrongState):
            await fleet.fork("web", ["child"])
        with pytest.raises(WrongState):
            await fleet.open_exec("web", ExecCommand(("true",)))


async def test_waiting_ends_in_the_state_or_when_it_cannot_be_reached_or_in_time() -> None:
    async with running([named("up", "a1"), named("down", "b2", State.STOPPED)]) as fleet:
        assert not (await fleet.wait("up", State.RUNNING, 0)).timed_out
        assert (await fleet.wait("up", State.STOPPED, 0)).timed_out
        outcome = await fleet.wait("down", State.RUNNING, 60)
        assert (outcome.state, outcome.timed_out) == (State.STOPPED, False)


async def test_waiting_for_an_instance_ends_when_it_is_deleted() -> None:
    async def wait() -> None:
        with pytest.raises(InstanceNotFound, match="web is gone"):
            await fleet.wait("web", State.STANDBY, 60.0)

    async with running([named("web", "abc1")]) as fleet, anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await fleet.delete("web")
