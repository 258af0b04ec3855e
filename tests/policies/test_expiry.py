"""Who is removed when, by a keeper of instances that go at once, later, or not yet."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.instance.fleet_types import InstanceNotFound
from ramet.policies.due import DueTimes
from ramet.policies.expiry import ExpiryKeeper
from tests.waiting import until

pytestmark = pytest.mark.anyio


def record(name: str, expires_at: float | None) -> InstanceRecord:
    spec = InstanceSpec("i", "d", "fake", 1, 1, 1, expires_at=expires_at)
    return InstanceRecord(spec, InstanceIdentity(InstanceId(name), name, None, "0" * 32, 0.0), State.RUNNING)


class Fleet:
    """Notes who is removed; the first `failing` removals fail."""

    def __init__(self, failing: int = 0) -> None:
        self.failing, self.removed = failing, list[str]()
        self.gate: anyio.Event | None = None

    async def delete(self, ref: str) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            self.failing -= 1
            raise Broken("not yet")
        self.removed.append(ref)
        if ref == "gone":
            raise InstanceNotFound(ref)


@asynccontextmanager
async def keeping(fleet: Fleet, *found: InstanceRecord) -> AsyncIterator[ExpiryKeeper]:
    keeper = ExpiryKeeper(fleet, retry_s=0.01)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, found)
        await anyio.lowlevel.checkpoint()
        yield keeper
        group.cancel_scope.cancel()


async def test_each_goes_when_its_time_is_up_and_once() -> None:
    fleet, now = Fleet(), time.time()
    found = (record("late", now - 5), record("never", None), record("next-year", now + 4e7))
    async with keeping(fleet, *found) as keeper:
        await until(lambda: fleet.removed == ["late"])
        keeper.see(record("soon", time.time() + 0.05))
        keeper.see(record("gone", time.time() + 0.1))
        await until(lambda: fleet.removed == ["late", "soon", "gone"])
        keeper.see(record("last", 0.0))
        await until(lambda: "last" in fleet.removed)
    assert fleet.removed == ["late", "soon", "gone", "last"]


async def test_more_time_less_time_and_none() -> None:
    fleet, now = Fleet(), time.time()
    async with keeping(fleet) as keeper:
        keeper.see(record("longer", now + 0.05))
        keeper.see(record("longer", now + 1e6))
        keeper.see(record("shorter", now + 1e6))
        keeper.see(record("shorter", now + 0.1))
        keeper.see(record("stays", now + 0.05))
        keeper.see(record("stays", None))
        keeper.see(record("going", now + 0.05))
        keeper.see(replace(record("going", now + 0.05), is_deleting=True))
        keeper.see(record("witness", now + 0.2))
        await until(lambda: "witness" in fleet.removed)
    assert fleet.removed == ["shorter", "witness"]


async def test_one_that_cannot_be_removed_is_tried_again() -> None:
    fleet = Fleet(failing=2)
    async with keeping(fleet, record("stuck", 0.0)):
        await until(lambda: fleet.removed == ["stuck"])


async def test_no_time_is_lost_when_many_are_due_at_once() -> None:
    fleet = Fleet()
    fleet.gate = anyio.Event()
    names = [f"n{number}" for number in range(100)]
    async with keeping(fleet, *(record(name, 1.0) for name in names)) as keeper:
        keeper.see(record("n99", time.time() + 1e6))
        fleet.gate.set()
        await until(lambda: len(fleet.removed) == 99)
    assert sorted(fleet.removed) == sorted(names[:99])


async def test_the_earliest_of_an_instances_times_counts_once() -> None:
    due = DueTimes(lambda: 100.0)
    for at, name in [(9.0, "b"), (8.0, "a"), (7.0, "b"), (10.0, "a"), (6.0, "b"), (200.0, "later")]:
        due.put(at, InstanceId(name))
    assert [await due.next(), await due.next()] == ["b", "a"]
    with anyio.move_on_after(0.05) as waited:
        await due.next()
    assert waited.cancelled_caught
