"""Who is asked when, and whose answers count, by a keeper whose guests answer as they are told to."""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ramet.core.health import HealthCheck, HealthStatus, TcpProbe
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.policies.checks import HealthKeeper
from tests.waiting import until

pytestmark = pytest.mark.anyio
OFTEN = HealthCheck("tcp", TcpProbe(80), 0.01, 20.0, 0.0, failure_threshold=2, success_threshold=1)


class Ward:
    """Instances, the keeper that asks them, and what it has told of them."""

    def __init__(self, max_concurrent: int = 256) -> None:
        self.records: dict[str, InstanceRecord] = {}
        self.asked = Counter[str]()
        self.asking = self.asking_most = 0
        self.errors: dict[str, str] = {}
        self.told: list[tuple[str, HealthStatus]] = []
        self.still_s = 0.0
        self.set_by_s = 0.0
        self.gate: anyio.Event | None = None
        self.keeper = HealthKeeper(self, self.note, max_concurrent, self.now, chance=lambda: 0.0)

    def now(self) -> float:
        return time.time() + self.set_by_s

    def stood_still_s(self, instance: InstanceId) -> float:
        return self.still_s

    async def probe(self, record: InstanceRecord, check: HealthCheck) -> str:
        self.asked[record.name] += 1
        self.asking += 1
        self.asking_most = max(self.asking_most, self.asking)
        try:
            error = self.errors.get(record.name, "")
            if self.gate is not None:
                await self.gate.wait()
            return error
        finally:
            self.asking -= 1

    async def note(self, record: InstanceRecord, status: HealthStatus) -> None:
        self.told.append((record.name, status))
        self.put(record.name, health=status)

    def put(self, name: str, check: HealthCheck | None = OFTEN, **changes: Any) -> None:
        before = self.records.get(name)
        if before is None:
            spec = InstanceSpec("i", "d", "fake", 1, 1, 1, health_check=check)
            identity = InstanceIdentity(InstanceId(name), name, None, "0" * 32, 0.0)
            before = InstanceRecord(spec, identity, State.RUNNING, started_at=time.time())
        self.records[name] = replace(before, **changes)
        self.keeper.see(self.records[name])

    async def more(self, name: str, count: int = 2) -> None:
        """Return when an instance has been asked so many times more."""
        goal = self.asked[name] + count
        await until(lambda: self.asked[name] >= goal)


@asynccontextmanager
async def ward(max_concurrent: int = 256) -> AsyncIterator[Ward]:
    there = Ward(max_concurrent)
    async with anyio.create_task_group() as group:
        group.start_soon(there.keeper.run)
        yield there
        group.cancel_scope.cancel()


async def test_what_checks_find_is_told_once_and_the_unhealthy_each_time() -> None:
    async with ward() as there:
        there.put("web")
        await there.more("web", 5)
        assert there.told == [("web", HealthStatus.HEALTHY)]
        there.errors["web"] = "refused"
        await until(lambda: len(there.told) >= 4)
        assert set(there.told[1:]) == {("web", HealthStatus.UNHEALTHY)}
        found = there.keeper.health(InstanceId("web"))
        assert found is not None
        assert (found.status, found.last_error, found.successes) == (HealthStatus.UNHEALTHY, "refused", 0)
        del there.errors["web"]
        await until(lambda: there.told[-1] == ("web", HealthStatus.HEALTHY))


@pytest.mark.parametrize("state", [State.INITIALIZING, State.PAUSED, State.STANDBY, State.STOPPED])
async def test_only_who_runs_is_asked(state: State) -> None:
    async with ward() as there:
        there.put("web", state=state)
        there.put("witness")
        await there.more("witness", 10)
        assert there.asked["web"] == 0
        assert there.keeper.health(InstanceId("web")) is None
        there.put("web", state=State.RUNNING)
        await there.more("web")
        there.put("web", state=state)
        count = there.asked["web"]
        await there.more("witness", 10)
        assert there.asked["web"] == count


async def test_an_answer_that_comes_when_it_sleeps_or_runs_anew_says_nothing() -> None:
    async with ward() as there:
        there.errors["web"] = "it stood still"
        there.gate = anyio.Event()
        there.put("web")
        await until(lambda: there.asking == 1)
        there.put("web", state=State.PAUSED)
        there.put("web", state=State.STANDBY)
        there.gate.set()
        await until(lambda: there.asking == 0)
        there.put("witness")
        await there.more("witness", 5)
        assert there.keeper.health(InstanceId("web")) is None
        there.gate = anyio.Event()
        there.put("web", state=State.RUNNING)
        await until(lambda: there.asking == 2)  # The witness, too.
        there.put("web", state=State.PAUSED)
        there.put("web", state=State.RUNNING)
        there.errors.clear()
        there.gate.set()
        await until(lambda: ("web", HealthStatus.HEALTHY) in there.told)
        assert ("web", HealthStatus.UNHEALTHY) not in there.told


async def test_nobody_waits_for_the_answer_of_one_that_does_not_run_any_more() -> None:
    async with ward() as there:
        there.gate = anyio.Event()
        for change in ({"state": State.PAUSED}, {"is_deleting": True}):
            there.put("web", state=State.RUNNING)
            await until(lambda: there.asking == 1)
            there.put("web", **change)
            await until(lambda: there.asking == 0)
        assert not there.told


async def test_one_that_fell_asleep_while_it_waited_to_be_asked_is_not() -> None:
    async with ward(max_concurrent=1) as there:
        there.gate = anyio.Event()
        there.put("first")
        await until(lambda: there.asking == 1)
        there.put("web")
        await anyio.wait_all_tasks_blocked()
        there.put("web", state=State.STANDBY)
        there.gate.set()
        await there.more("first", 5)
        assert there.asked["web"] == 0


async def test_sleep_keeps_what_was_found_and_a_new_run_begins_anew() -> None:
    async with ward() as there:
        there.errors["web"] = "refused"
        there.put("web")
        await until(lambda: ("web", HealthStatus.UNHEALTHY) in there.told)
        there.put("web", state=State.STANDBY)
        found = there.keeper.health(InstanceId("web"))
        assert found is not None
        assert found.status is HealthStatus.UNHEALTHY
        there.put("web", state=State.STOPPED)
        there.put("web", state=State.INITIALIZING, started_at=None, health=None)
        assert there.keeper.health(InstanceId("web")) is None
        del there.errors["web"]
        there.put("web", state=State.RUNNING, started_at=time.time())
        await until(lambda: there.told[-1] == ("web", HealthStatus.HEALTHY))


async def test_a_daemon_that_starts_goes_on_from_what_was_found() -> None:
    there = Ward()
    there.put("ill", health=HealthStatus.UNHEALTHY)
    there.put("well", health=HealthStatus.HEALTHY)
    there.errors = {"ill": "refused", "well": "refused"}
    there.keeper = HealthKeeper(there, there.note, chance=lambda: 0.0)
    async with anyio.create_task_group() as group:
        group.start_soon(there.keeper.run, list(there.records.values()))
        await until(lambda: len(there.told) >= 1)
        assert there.told[0] == ("ill", HealthStatus.UNHEALTHY)
        await until(lambda: ("well", HealthStatus.UNHEALTHY) in there.told)
        assert there.asked["well"] >= OFTEN.failure_threshold
        group.cancel_scope.cancel()


async def test_who_does_not_answer_in_time_has_failed() -> None:
    async with ward() as there:
        there.gate = anyio.Event()
        there.put("web", replace(OFTEN, timeout_s=0.02))
        await until(lambda: ("web", HealthStatus.UNHEALTHY) in there.told)
        found = there.keeper.health(InstanceId("web"))
        assert found is not None
        assert found.last_error == "no answer within 0.02 s"


async def test_one_that_stood_still_and_could_not_answer_has_not_failed() -> None:
    async with ward() as there:
        there.errors["web"] = "it stood still"
        there.gate = anyio.Event()
        there.put("web")
        for _ in range(4):
            await until(lambda: there.asking == 1)
            there.still_s += 60.0
            gate, there.gate = there.gate, anyio.Event()
            gate.set()
            await until(lambda: there.asking == 0)
        assert there.keeper.health(InstanceId("web")) is None
        there.gate.set()  # It stands still no more, and does not answer.
        there.gate = None
        await until(lambda: ("web", HealthStatus.UNHEALTHY) in there.told)


async def test_one_that_answers_does_well_even_if_it_stood_still() -> None:
    async with ward() as there:
        there.gate = anyio.Event()
        there.put("web")
        await until(lambda: there.asking == 1)
        there.still_s += 60.0
        there.gate.set()
        await until(lambda: ("web", HealthStatus.HEALTHY) in there.told)


@pytest.mark.parametrize("by_s", [-86_400.0, 86_400.0])
async def test_a_clock_that_is_set_neither_ends_its_time_to_start_nor_has_it_last(by_s: float) -> None:
    async with ward() as there:
        there.errors["web"] = "not yet"
        there.put("web", replace(OFTEN, start_period_s=3600.0))
        there.errors["old"] = "never"
        there.put("old", replace(OFTEN, start_period_s=3600.0), started_at=time.time() - 7200)
        there.set_by_s = by_s
        await until(lambda: ("old", HealthStatus.UNHEALTHY) in there.told)
        await there.more("web", 5)
        assert ("web", HealthStatus.UNHEALTHY) not in there.told


async def test_so_many_are_asked_at_a_time_and_each_once() -> None:
    async with ward(max_concurrent=3) as there:
        there.gate = anyio.Event()
        for number in range(10):
            there.put(f"web{number}")
        await until(lambda: there.asking == 3)
        there.gate.set()
        await until(lambda: len(there.asked) == 10)
        assert there.asking_most == 3


async def test_a_check_that_is_changed_or_taken_away_is_so_at_once() -> None:
    async with ward() as there:
        there.errors["web"] = "refused"
        there.put("web")
        await until(lambda: ("web", HealthStatus.UNHEALTHY) in there.told)
        spec = there.records["web"].spec
        there.put("web", spec=replace(spec, health_check=replace(OFTEN, failure_threshold=3)))
        found = there.keeper.health(InstanceId("web"))
        assert found is None
        there.put("web", spec=replace(spec, health_check=None))
        there.put("going")
        there.put("going", is_deleting=True)
        there.put("witness")
        count = there.asked["web"] + there.asked["going"]
        await there.more("witness", 10)
        assert there.asked["web"] + there.asked["going"] <= count + 1  # One was being asked.
        assert there.keeper.health(InstanceId("web")) is None
