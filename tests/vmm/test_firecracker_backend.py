"""Who fills a loaded guest's memory, and how many are loaded at a time."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from ramet.linux.inotify import watch_new_files
from ramet.vmm.firecracker.backend import Backend, MemoryFacts, choose_backend
from ramet.vmm.firecracker.vm import FirecrackerVm
from tests.vmm.fake_firecracker.faults import arm, is_taken
from tests.vmm.firecracker_bench import FirecrackerBench


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (MemoryFacts(1.0), Backend.FILE),
        (MemoryFacts(0.95), Backend.FILE),
        (MemoryFacts(0.5), Backend.UFFD),
        (MemoryFacts(0.0), Backend.UFFD),
        (MemoryFacts(0.0, is_first=False), Backend.FILE),
        (MemoryFacts(1.0, is_packed=True), Backend.UFFD),
        (MemoryFacts(1.0, is_packed=True, is_first=False), Backend.UFFD),
        (MemoryFacts(1.0, is_overlaid=True), Backend.UFFD),
    ],
)
def test_the_pager_is_for_what_is_not_in_memory_or_cannot_be_mapped(
    facts: MemoryFacts, expected: Backend
) -> None:
    assert choose_backend(facts) is expected


class Recorder:
    """Chooses the file, and remembers what it was told."""

    def __init__(self) -> None:
        self.asked: list[MemoryFacts] = []

    def __call__(self, facts: MemoryFacts) -> Backend:
        self.asked.append(facts)
        return Backend.FILE


class NoPager:
    """A pager that must not be asked."""

    is_there = True

    async def open_session(
        self, session_id: str, base: Path, size_bytes: int, *, is_packed: bool, is_learned: bool
    ) -> Path:
        raise AssertionError("the pager was asked")

    async def ready_session(self, session_id: str) -> None:
        raise AssertionError("the pager was asked")

    async def close_session(self, session_id: str) -> None:
        raise AssertionError("the pager was asked")


@pytest.fixture
async def bench() -> AsyncIterator[FirecrackerBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    bench = FirecrackerBench(folder, pager=NoPager())
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.mark.anyio
async def test_the_driver_asks_with_what_it_knows_of_the_memory(bench: FirecrackerBench) -> None:
    recorder = Recorder()
    bench.choose = recorder
    bench.driver = bench.open_driver()
    source = await bench.boot()
    await bench.run(source, bench.remember("who", "source"))
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    child = await bench.child(capture, frozen)
    assert await bench.run(child, bench.recall("who")) == "source"
    (facts,) = recorder.asked
    assert facts.is_first
    assert facts.cached_ratio >= 0.99  # A memfd is nowhere else.
    folder = child.agent_socket.parent
    await child.kill()
    machine = bench.machine(bench.layers.create_on(frozen, bench.overlay_bytes))
    again = machine.folder
    (again / "vmm.log").write_bytes((folder / "vmm.log").read_bytes())
    later = await bench.driver.start_waiting(machine, capture)
    bench.vms.append(later)
    await later.load(capture)
    assert not recorder.asked[-1].is_first
    capture.close()


@pytest.mark.anyio
async def test_who_finds_no_place_to_load_in_waits_for_one(bench: FirecrackerBench) -> None:
    bench.choose, bench.restore_count_max = choose_backend, 1
    bench.driver = bench.open_driver()
    source = await bench.boot()
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    first, second = [await bench.start_waiting(capture, frozen) for _ in range(2)]
    arm(bench.faults, "hang", "PUT /snapshot/load")
    ended: list[str] = []

    async def load(vm: FirecrackerVm, name: str) -> None:
        try:
            await vm.load(capture)
        finally:
            ended.append(name)

    assert isinstance(first, FirecrackerVm)
    assert isinstance(second, FirecrackerVm)
    with watch_new_files(bench.faults) as files:
        async with anyio.create_task_group() as group:
            hanging = anyio.CancelScope()

            async def hang() -> None:
                with hanging:
                    await load(first, "first")

            group.start_soon(hang)
            while not is_taken(bench.faults, "hang", "PUT /snapshot/load"):
                await files.wait()
            group.start_soon(load, second, "second")
            await anyio.wait_all_tasks_blocked()
            assert ended == []
            assert "/snapshot/load" not in (second.agent_socket.parent / "vmm.log").read_text()
            hanging.cancel()
    assert ended == ["first", "second"]
    assert not await second.is_paused()
    capture.close()
