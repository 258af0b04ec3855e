"""Children whose memory the real pager serves: a userfaultfd, handed over as Firecracker does it."""

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from anyio import create_task_group, fail_after
from anyio.lowlevel import checkpoint

from ramet.boot.locate import PAGER_PROGRAM, native_program
from ramet.linux.stored_file import StoredFile
from ramet.pager import PagerClient, PagerService, PagerSession, SessionPhase, pack
from ramet.vmm.firecracker.backend import choose_backend
from ramet.vmm.jail import JailMode
from ramet.vmm.port import Capture, VmmFailed
from tests.vmm.bench import LiveVm, digest
from tests.vmm.fake_firecracker.faults import arm
from tests.vmm.firecracker_bench import FirecrackerBench

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

BURST = 25


async def end_none(served: frozenset[int]) -> None:
    """Leave all VMMs alone."""


@asynccontextmanager
async def pager_at(folder: Path) -> AsyncIterator[PagerService]:
    """Have a pager inside, which is killed afterwards."""
    service = PagerService(folder, native_program(PAGER_PROGRAM), end_none)
    await service.start()
    async with create_task_group() as group:
        group.start_soon(service.run)
        yield service
        group.cancel_scope.cancel()
    os.kill((await client_at(folder).health()).pid, signal.SIGKILL)


def client_at(folder: Path) -> PagerClient:
    (own,) = folder.iterdir()
    return PagerClient(own / "control.sock")


@pytest.fixture(scope="module", params=[JailMode.OFF, JailMode.ON], ids=["free", "jailed"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[FirecrackerBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    async with pager_at(folder / "pagers") as service:
        bench = FirecrackerBench(folder, pager=service, jail=request.param)
        yield bench
        await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: FirecrackerBench) -> LiveVm:
    return await bench.boot()


def pager_of(bench: FirecrackerBench) -> PagerClient:
    return client_at(bench.folder / "pagers")


async def sessions_of(bench: FirecrackerBench, count: int) -> tuple[PagerSession, ...]:
    """Return the sessions when there are `count`: those of VMMs that have ended go by themselves."""
    with fail_after(20):
        while len(sessions := (await pager_of(bench).statistics()).sessions) != count:
            await checkpoint()
    return sessions


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
    sessions = await sessions_of(bench, BURST)
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
    if bench.jail.mode is JailMode.ON:
        pytest.skip("in its jail the fake sees no file that tells it to fail")
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    for kind in ("fail", "late-fail"):
        arm(bench.faults, kind, "PUT /snapshot/load")
        child = await bench.start_waiting(capture, frozen)
        with pytest.raises(VmmFailed, match="on demand"):
            await child.load(capture)
        bench.vms.remove(child)
    await sessions_of(bench, 0)
    sibling = await bench.child(capture, frozen)
    await sessions_of(bench, 1)
    capture.close()
    await bench.end(sibling)


async def test_without_a_pager_the_file_is_mapped(bench: FirecrackerBench, source: LiveVm) -> None:
    await bench.run(source, bench.remember("fallback", "yes"))
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    async with driven_without_pager(bench):
        child = await bench.child(capture, frozen)
    capture.close()
    await sessions_of(bench, 0)
    assert await bench.run(child, bench.recall("fallback")) == "yes"
    await bench.end(child)


@asynccontextmanager
async def driven_without_pager(bench: FirecrackerBench) -> AsyncIterator[None]:
    there, driver = bench.pager, bench.driver
    bench.pager = PagerService(bench.folder / "none", bench.folder / "no-program", end_none)
    bench.driver = bench.open_driver()
    assert not bench.driver.takes_packed
    try:
        yield
    finally:
        bench.pager, bench.driver = there, driver


def packed(bench: FirecrackerBench, capture: Capture) -> Capture:
    """Return `capture` as one whose memory is packed. Closes it."""
    raw, file = bench.folder / "raw", bench.folder / "memory.packed"
    raw.write_bytes(os.pread(capture.memory.fd, capture.memory.size_bytes, 0))
    pack(raw, file)
    raw.unlink()
    devices, kind = os.dup(capture.devices.fd), capture.format
    capture.close()
    found = Capture(StoredFile.open(file), StoredFile(devices, is_sealed=True), kind, is_packed=True)
    file.unlink()
    return found


@pytest.mark.parametrize("is_first", [True, False], ids=["fork", "wake"])
async def test_packed_memory_is_served_by_the_pager_and_never_unpacked(
    bench: FirecrackerBench, source: LiveVm, is_first: bool
) -> None:
    assert bench.driver.takes_packed
    bench.choose = choose_backend
    driver, bench.driver = bench.driver, bench.open_driver()
    await bench.run(source, bench.remember("packed", "yes"))
    frozen = bench.tops[source.runtime.pid]
    capture = packed(bench, await bench.capture(source))
    layer = bench.layers.create_on(frozen, bench.overlay_bytes)
    machine = bench.machine(layer)
    if not is_first:
        (machine.folder / "vmm.log").touch()
    child = bench.keep(await bench.driver.start_waiting(machine, capture), layer)
    await bench.wake(child, capture, "child")
    await child.note_ready()
    (session,) = await sessions_of(bench, 1)
    assert session.copied_bytes
    assert not session.is_recording
    assert await bench.run(child, bench.recall("packed")) == "yes"
    capture.close()
    grandchild = await bench.fork(child)
    assert await bench.run(grandchild, bench.recall("packed")) == "yes"
    await bench.end(grandchild)
    await bench.end(child)
    bench.driver = driver


async def test_what_waits_takes_the_memory_in_whichever_form_it_is_then(
    bench: FirecrackerBench, source: LiveVm
) -> None:
    """It may have been packed, or unpacked, since the process was started."""
    await bench.run(source, bench.remember("form", "either"))
    frozen = bench.tops[source.runtime.pid]
    raw = await bench.capture(source)
    again = Capture(
        StoredFile(os.dup(raw.memory.fd), is_sealed=True), StoredFile(os.dup(raw.devices.fd)), raw.format
    )
    early = await bench.start_waiting(again, frozen)
    small = packed(bench, raw)
    late = await bench.start_waiting(small, frozen)
    await bench.wake(early, small, "early")
    async with driven_without_pager(bench):
        other = await bench.start_waiting(small, frozen)
        await bench.wake(other, again, "other")
    await bench.wake(late, again, "late")
    for vm in (early, late, other):
        assert await bench.run(vm, bench.recall("form")) == "either"
        await bench.end(vm)
    again.close()
    small.close()


async def test_packed_memory_cannot_be_loaded_without_a_pager(
    bench: FirecrackerBench, source: LiveVm
) -> None:
    frozen = bench.tops[source.runtime.pid]
    capture = packed(bench, await bench.capture(source))
    async with driven_without_pager(bench):
        child = await bench.start_waiting(capture, frozen)
        with pytest.raises(VmmFailed, match="no pager serves"):
            await child.load(capture)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    bench.vms.remove(child)
    capture.close()
