"""The fake keeps the contract of the port, and fails when it is told to."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramet.vmm.fake.driver import COMMAND_TIMEOUT_S, FakeDriver, FakeVm
from ramet.vmm.fake.faults import CAPTURE_CALLS, Call
from ramet.vmm.port import Vm, VmmFailed
from tests.vmm.bench import Bench, LiveVm
from tests.vmm.contract import ForkContract

pytestmark = pytest.mark.anyio


class FakeBench(Bench):
    memory_bytes = 1 << 20
    kernel = initramfs = root = Path("/dev/null")

    def open_driver(self, timeout_s: float | None = None) -> FakeDriver:
        return FakeDriver(self.instances, timeout_s=timeout_s or COMMAND_TIMEOUT_S)

    def remember(self, name: str, value: str) -> tuple[str, ...]:
        return ("set", name, value)

    def recall(self, name: str) -> tuple[str, ...]:
        return ("get", name)

    def store(self, name: str, value: str) -> tuple[str, ...]:
        return ("write", name, value)

    def fetch(self, name: str) -> tuple[str, ...]:
        return ("read", name)

    def reset(self) -> tuple[str, ...]:
        return ("reset",)

    async def disk_rates(self, vm: Vm) -> set[int | None]:
        assert isinstance(vm, FakeVm)
        return {(await vm._do("query"))["disk_io_bytes_per_s"]}

    def workload(self) -> tuple[str, ...]:
        return ("sleep",)


@pytest.fixture(scope="module")
async def bench() -> AsyncIterator[FakeBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fake-"))  # Short: sockets lie in it.
    bench = FakeBench(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: FakeBench) -> LiveVm:
    return await bench.boot()


class TestFake(ForkContract):
    """The contract."""


@pytest.fixture
async def faulty(bench: FakeBench) -> FakeDriver:
    """The bench's driver, with nothing armed."""
    assert isinstance(bench.driver, FakeDriver)
    assert bench.driver.faults.is_used_up
    return bench.driver


@pytest.mark.parametrize("call", [call for call in CAPTURE_CALLS if call != "top_layer"])
async def test_each_call_of_a_capture_fails_once_when_told_to_and_then_works(
    bench: FakeBench, source: LiveVm, faulty: FakeDriver, call: Call
) -> None:
    child = await bench.fork(source)
    faulty.faults.fail(call, VmmFailed("on demand"))
    with pytest.raises(VmmFailed, match="on demand"):
        await bench.capture(child)
    assert faulty.faults.is_used_up
    assert not await child.is_paused()
    await bench.end(child)


async def test_a_late_fault_strikes_when_the_work_is_done(
    bench: FakeBench, source: LiveVm, faulty: FakeDriver
) -> None:
    child = await bench.fork(source)
    faulty.faults.fail("switch_disk", VmmFailed("lost"), late=True)
    before = await child.top_layer()
    with pytest.raises(VmmFailed, match="lost"):
        await bench.capture(child)
    assert await child.top_layer() != before
    await bench.end(child)


async def test_a_start_that_fails_late_leaves_no_process(bench: FakeBench, faulty: FakeDriver) -> None:
    before = await bench.driver.find()
    faulty.faults.fail("boot", VmmFailed("late"), late=True)
    with pytest.raises(VmmFailed, match="late"):
        await bench.boot()
    assert await bench.driver.find() == before
