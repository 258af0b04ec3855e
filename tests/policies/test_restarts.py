"""Who is started again when, by a keeper of instances whose runs have ended."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from ramet.core.errors import Broken, RametError
from ramet.core.ids import InstanceId, LayerId
from ramet.core.restart import RestartPolicy, Restarts, RestartWhen, RunEnd
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.instance.fleet_types import InstanceView, WrongState
from ramet.policies.restarts import MAX_CONCURRENT, RestartKeeper
from tests.waiting import until

pytestmark = pytest.mark.anyio
SOON = RestartPolicy(RestartWhen.ALWAYS, 0.02, 3, 600.0)


class House:
    """Instances whose runs have ended; `failures` are those of the next starts."""

    def __init__(self) -> None:
        self.records: dict[str, InstanceRecord] = {}
        self.started: list[str] = []
        self.failures: list[RametError] = []
        self.gate: anyio.Event | None = None
        self.starting = 0
        self.set_by_s = 0.0
        self.keeper = RestartKeeper(self, lambda: time.time() + self.set_by_s, retry_s=0.01)

    async def restart(self, ref: str) -> InstanceView:
        self.starting += 1
        if self.gate is not None:
            await self.gate.wait()
        self.starting -= 1
        if self.failures:
            raise self.failures.pop(0)
        self.started.append(ref)
        record = self.records[ref]
        self.put(ref, state=State.RUNNING, restarts=record.restarts.attempted(time.time()))
        return cast(InstanceView, _View(self.records[ref]))

    def put(self, name: str, policy: RestartPolicy | None = SOON, **changes: Any) -> None:
        record = self.records.get(name)
        if record is None:
            spec = InstanceSpec("i", "d", "fake", 1, 1, 1, restart_policy=policy)
            identity = InstanceIdentity(InstanceId(name), name, None, "0" * 32, 0.0)
            record = InstanceRecord(
                spec,
                identity,
                State.STOPPED,
                layer=LayerId("layer"),
                stopped_at=time.time(),
                restarts=Restarts(end=RunEnd.ITSELF),
            )
        self.records[name] = replace(record, **changes)
        self.keeper.see(self.records[name])


class _View:
    def __init__(self, record: InstanceRecord) -> None:
        self.record = record


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    there = House()
    async with anyio.create_task_group() as group:
        group.start_soon(there.keeper.run)
        yield there
        group.cancel_scope.cancel()


async def test_each_is_started_when_its_time_has_come_and_once() -> None:
    async with house() as there:
        there.put("never", None)
        there.put("later", replace(SOON, backoff_s=3600.0))
        there.put("stopped", restarts=Restarts(end=RunEnd.REQUEST))
        there.put("spent", restarts=Restarts(3, end=RunEnd.ITSELF))
        ended_at = time.time()
        there.put("soon", stopped_at=ended_at)
        await until(lambda: there.started == ["soon"])
        assert time.time() >= ended_at + SOON.backoff_s
        there.put("witness")
        await until(lambda: "witness" in there.started)
    assert there.started == ["soon", "witness"]


async def test_whoever_was_stopped_started_or_deleted_meanwhile_is_left_alone() -> None:
    async with house() as there:
        there.gate = anyio.Event()
        for number in range(MAX_CONCURRENT):
            there.put(f"first{number}")
        await until(lambda: there.starting == MAX_CONCURRENT)
        for name in ("stopped", "running", "deleted"):
            there.put(name, stopped_at=1.0)
        await anyio.wait_all_tasks_blocked()
        there.put("stopped", restarts=Restarts(end=RunEnd.REQUEST))
        there.put("running", state=State.RUNNING)
        there.put("deleted", is_deleting=True)
        there.put("witness")
        there.gate.set()
        await until(lambda: "witness" in there.started)
    assert set(there.started) == {"witness", *(f"first{number}" for number in range(MAX_CONCURRENT))}


async def test_a_start_that_is_refused_is_tried_again_unless_somebody_was_quicker() -> None:
    async with house() as there:
        there.failures = [Broken("the disk is full"), Broken("still")]
        there.put("web")
        await until(lambda: there.started == ["web"])
        there.failures = [WrongState("it runs")]
        there.put("quick")
        await until(lambda: not there.failures)
        there.put("witness")
        await until(lambda: "witness" in there.started)
    assert there.started == ["web", "witness"]


async def test_nobody_waits_for_a_clock_that_was_set_back() -> None:
    async with house() as there:
        there.put("web", replace(SOON, backoff_s=60.0))
        await anyio.wait_all_tasks_blocked()
        there.set_by_s = -86_400.0
        there.put("witness", stopped_at=time.time() - 86_400.0)  # The clock is looked at each minute, or now.
        await until(lambda: set(there.started) == {"web", "witness"})


async def test_what_was_due_while_nobody_kept_it_is_started_at_once() -> None:
    there = House()
    there.put("late", replace(SOON, backoff_s=60.0), stopped_at=time.time() - 3600)
    there.keeper = RestartKeeper(there)
    async with anyio.create_task_group() as group:
        group.start_soon(there.keeper.run, list(there.records.values()))
        await until(lambda: there.started == ["late"])
        group.cancel_scope.cancel()
