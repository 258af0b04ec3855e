"""Children whose memory the real pager serves: a userfaultfd, handed over as Firecracker does it."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from anyio import create_task_group

from ramet.boot.locate import PAGER_PROGRAM, native_program
from ramet.pager import PagerClient, PagerSupervisor, SessionPhase
from ramet.vmm.port import VmmFailed
from tests.vmm.bench import LiveVm, digest
from tests.vmm.fake_firecracker.faults import arm
from tests.vmm.firecracker_bench import FirecrackerBench

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

BURST = 25


@pytest.fixture(scope="module")
async def bench() -> AsyncIterator[FirecrackerBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    supervisor = PagerSupervisor(folder / "pagers", native_program(PAGER_PROGRAM))
    await supervisor.start()
    (own,) = (folder / "pagers").iterdir()
    bench = FirecrackerBench(folder, pager=PagerClient(own / "control.sock"))
    yield bench
    await bench.aclose()
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor.pid, signal.SIGKILL)
    await supervisor.wait_exited()
    supervisor.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: FirecrackerBench) -> LiveVm:
    return await bench.boot()


def pager_of(bench: FirecrackerBench) -> PagerClient:
    assert isinstance(bench.pager, PagerClient)
    return bench.pager


async def test_many_children_are_served_at_once_and_every_page_is_right(
    bench: FirecrackerBench, source: LiveVm
) -> None:
    await bench.run(source, bench.remember("burst", "yes"))
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    before = digest(capture.memory)
    children = [await bench.start_waiting(capture, frozen) for _ in range(BURST)]
    async with create_task_group() as group:
        for child in children:
            group.start_soon(bench.wake, child, capture, "child")
    sessions = (await pager_of(bench).statistics()).sessions
    assert {session.vmm_pid for session in sessions} == {child.runtime.pid for child in children}
    for session in sessions:
        assert session.phase is SessionPhase.SERVING
        assert session.copied_bytes + session.zeroed_bytes == bench.memory_bytes  # All of it was touched.
    for child in children:
        assert await bench.run(child, bench.recall("burst")) == "yes"
        await bench.end(child)
    assert digest(capture.memory) == before
    capture.close()


async def test_a_child_that_the_pager_serves_can_be_forked(bench: FirecrackerBench, source: LiveVm) -> None:
    child = await bench.fork(source)
    await bench.run(child, bench.remember("second", "2"))
    grandchild = await bench.fork(child)
    await bench.end(child)
    assert await bench.run(grandchild, bench.recall("second")) == "2"
    await bench.end(grandchild)


async def test_a_load_that_fails_leaves_no_session_and_the_next_works(
    bench: FirecrackerBench, source: LiveVm
) -> None:
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    for kind in ("fail", "late-fail"):
        arm(bench.faults, kind, "PUT /snapshot/load")
        child = await bench.start_waiting(capture, frozen)
        with pytest.raises(VmmFailed, match="on demand"):
            await child.load(capture)
        bench.vms.remove(child)
    assert (await pager_of(bench).health()).session_count == 0
    sibling = await bench.child(capture, frozen)
    assert (await pager_of(bench).health()).session_count == 1
    capture.close()
    await bench.end(sibling)


async def test_a_pager_that_is_gone_is_an_error_of_the_load(bench: FirecrackerBench, source: LiveVm) -> None:
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    there, bench.pager = bench.pager, PagerClient(bench.folder / "nobody.sock")
    driver, bench.driver = bench.driver, bench.open_driver()
    try:
        child = await bench.start_waiting(capture, frozen)
    finally:
        bench.pager, bench.driver = there, driver
    with pytest.raises(VmmFailed, match="no pager serves"):
        await child.load(capture)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    bench.vms.remove(child)
    capture.close()
