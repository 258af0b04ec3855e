"""Who wakes sleepers that are called, against instances that do as they are told."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.core.auto_standby import AutoStandby
from ramet.core.errors import Exhausted, RametError
from ramet.core.ids import CaptureId, InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.instance.fleet_types import InstanceView
from ramet.net.errors import NetworkFailed
from ramet.policies.traffic import TrafficKeeper
from tests.waiting import until

pytestmark = pytest.mark.anyio
ID = InstanceId("a")
SPEC = InstanceSpec(
    "demo:1", "sha256:0", "fake", 1, 1 << 20, 1 << 20, auto_standby=AutoStandby(True, 60.0, (), (), True)
)
IDENTITY = InstanceIdentity(ID, "web", 7, "0" * 32, 1.0)
ASLEEP = InstanceRecord(SPEC, IDENTITY, State.STANDBY, capture=CaptureId("c"))
TIMEOUT_S = 20.0
RETRY_S = 0.02


class Host:
    """One instance and its doorbell; `failures` are raised by restores, one after another."""

    def __init__(self) -> None:
        self.record = ASLEEP
        self.keeper: TrafficKeeper | None = None
        self.failures: list[RametError] = []
        self.arm_failures: list[RametError] = []
        self.restore_count = self.arm_count = self.disarm_count = 0
        self.on_syn: Callable[[InstanceId], None] | None = None

    def get(self, ref: str) -> InstanceView:
        return InstanceView(self.record)

    async def restore(self, ref: str) -> InstanceView:
        self.restore_count += 1
        if self.failures:
            raise self.failures.pop(0)
        self.become(replace(self.record, state=State.RUNNING))
        return self.get(ref)

    def become(self, record: InstanceRecord) -> None:
        self.record = record
        assert self.keeper is not None
        self.keeper.see(record)

    async def arm(self, instance: InstanceId, on_syn: Callable[[InstanceId], None]) -> bool:
        self.arm_count += 1
        if self.arm_failures:
            raise self.arm_failures.pop(0)
        self.on_syn = on_syn
        return True

    async def disarm(self, instance: InstanceId) -> None:
        self.disarm_count += 1
        self.on_syn = None

    def is_armed(self, instance: InstanceId) -> bool:
        return self.on_syn is not None

    def call(self) -> None:
        on_syn, self.on_syn = self.on_syn, None
        assert on_syn is not None
        on_syn(ID)


@asynccontextmanager
async def kept(host: Host, *, by_default: bool = False) -> AsyncIterator[TrafficKeeper]:
    keeper = host.keeper = TrafficKeeper(host, host, by_default=by_default, retry_s=RETRY_S)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, [host.record])
        yield keeper
        group.cancel_scope.cancel()


async def rested() -> None:
    """Let all have their turns that can."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def test_one_that_is_called_is_woken_once() -> None:
    host = Host()
    async with kept(host) as keeper:
        await until(lambda: host.is_armed(ID))
        assert keeper.status(host.record).is_woken
        host.call()
        await until(lambda: host.record.state is State.RUNNING)
        await rested()
        assert (host.restore_count, host.arm_count) == (1, 1)


async def test_one_that_is_refused_is_left_alone_for_longer_each_time_and_says_why() -> None:
    host = Host()
    async with kept(host) as keeper:
        for count in range(4):
            await until(lambda: host.is_armed(ID))
            host.failures.append(Exhausted("the host is full"))
            host.call()
            refused_at = time.time()
            await until(lambda: bool(keeper.status(host.record).error))
            keeper.see(host.record)  # What else happens to it does not shorten that.
            await until(lambda: host.is_armed(ID))
            assert time.time() - refused_at >= RETRY_S * 2**count
            assert (host.arm_count, host.restore_count) == (count + 2, count + 1)
        host.call()
        await until(lambda: host.record.state is State.RUNNING)
        host.become(ASLEEP)
        await until(lambda: host.is_armed(ID))
        assert keeper.status(host.record).error == ""


async def test_one_that_cannot_be_armed_is_tried_again() -> None:
    host = Host()
    host.arm_failures.append(NetworkFailed("no"))
    async with kept(host):
        await until(lambda: host.is_armed(ID))
        assert host.arm_count == 2


@pytest.mark.parametrize(
    "record",
    [
        replace(ASLEEP, state=State.RUNNING),
        replace(ASLEEP, becoming=State.RUNNING),
        replace(ASLEEP, is_deleting=True),
        replace(ASLEEP, spec=replace(SPEC, auto_standby=None)),
        replace(ASLEEP, spec=replace(SPEC, auto_standby=AutoStandby(True, 60.0))),
        replace(ASLEEP, spec=replace(SPEC, has_network=False)),
    ],
    ids=["awake", "about to wake", "being deleted", "no policy", "no word of it", "no network"],
)
async def test_what_is_not_to_be_woken_is_not_armed_or_not_any_more(record: InstanceRecord) -> None:
    host = Host()
    host.record = record
    async with kept(host):
        await rested()
        assert host.arm_count == 0
        host.become(ASLEEP)
        await until(lambda: host.is_armed(ID))
        host.become(record)
        await until(lambda: host.disarm_count == 1)


async def test_by_default_those_are_armed_that_sleep_by_themselves() -> None:
    host = Host()
    host.record = replace(ASLEEP, spec=replace(SPEC, auto_standby=AutoStandby(True, 60.0)))
    async with kept(host, by_default=True):
        await until(lambda: host.is_armed(ID))
