"""What a Firecracker that refuses, hangs or dies at any call leaves behind: a capture to try again."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from anyio import create_task_group

from ramet.linux.inotify import watch_new_files
from ramet.vmm.port import DiskImage, LiveForkUnsupported, Nic, VmmFailed, VmmUnsupported
from tests.vmm.bench import LiveVm, digest
from tests.vmm.fake_firecracker.faults import Kind, arm, is_taken
from tests.vmm.firecracker_bench import FirecrackerBench

pytestmark = pytest.mark.anyio

BOOT_CALLS = (
    "GET /version",
    "PUT /machine-config",
    "PUT /boot-source",
    "PUT /drives/root",
    "PUT /drives/overlay",
    "PUT /drives/config",
    "PUT /vsock",
    "PUT /entropy",
    "PUT /balloon",
    "PUT /actions",
)
CAPTURE_CALLS = ("PATCH /vm", "PATCH /drives/overlay", "PUT /snapshot/create")
BURST = 25


@pytest.fixture(scope="module")
async def bench() -> AsyncIterator[FirecrackerBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    bench = FirecrackerBench(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: FirecrackerBench) -> LiveVm:
    return await bench.boot()


@pytest.mark.parametrize("call", BOOT_CALLS)
@pytest.mark.parametrize("kind", ["fail", "die"])
async def test_a_boot_that_fails_leaves_no_process(bench: FirecrackerBench, call: str, kind: Kind) -> None:
    before = await bench.driver.find()
    arm(bench.faults, kind, call)
    with pytest.raises(VmmFailed, match=call if kind == "fail" else "ended|cannot be asked"):
        await bench.boot()
    assert is_taken(bench.faults, kind, call)
    assert await bench.driver.find() == before


@pytest.mark.parametrize("call", CAPTURE_CALLS)
async def test_a_source_runs_on_when_its_capture_was_refused(
    bench: FirecrackerBench, source: LiveVm, call: str
) -> None:
    child = await bench.fork(source)
    before = await child.top_layer()
    arm(bench.faults, "fail", call)
    with pytest.raises(VmmFailed, match="on demand"):
        await bench.capture(child)
    assert is_taken(bench.faults, "fail", call)
    assert not await child.is_paused()
    if call != "PUT /snapshot/create":  # The disk was switched by then, and stays so.
        assert await child.top_layer() == before
    async with bench.channel(child) as channel:
        await channel.thaw()
    await bench.run(child, bench.store("after", call))
    assert await bench.run(child, bench.fetch("after")) == call
    await bench.end(child)


@pytest.mark.parametrize("call", CAPTURE_CALLS)
@pytest.mark.parametrize("kind", ["die", "late-die"])
async def test_the_end_of_a_source_in_its_capture_is_an_error_and_its_disk_is_whole(
    bench: FirecrackerBench, source: LiveVm, call: str, kind: Kind
) -> None:
    child = await bench.fork(source)
    await bench.run(child, bench.store("before", call))
    arm(bench.faults, kind, call)
    top = bench.tops[child.runtime.pid]
    with pytest.raises(VmmFailed):
        await bench.capture(child)
    await child.wait_exited()
    bench.vms.remove(child)
    again = bench.keep(await bench.driver.boot(bench.machine(bench.layers.create_on(top, 0))), top)
    assert await bench.run(again, bench.fetch("before")) == call
    await bench.end(again)


@pytest.mark.parametrize("kind", ["fail", "die", "late-die", "hang"])
async def test_a_load_that_fails_ends_the_process_and_leaves_the_capture_for_another_try(
    bench: FirecrackerBench, source: LiveVm, kind: Kind
) -> None:
    await bench.run(source, bench.remember("kind", kind))
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    before = digest(capture.memory), digest(capture.devices)
    arm(bench.faults, kind, "PUT /snapshot/load")
    driver, bench.driver = bench.driver, bench.open_driver(load_timeout_s=0.5 if kind == "hang" else None)
    try:
        child = await bench.start_waiting(capture, frozen)
    finally:
        bench.driver = driver
    with pytest.raises(VmmFailed, match="did not load"):
        await child.load(capture)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    bench.vms.remove(child)
    assert (digest(capture.memory), digest(capture.devices)) == before
    sibling = await bench.child(capture, frozen)
    assert await bench.run(sibling, bench.recall("kind")) == kind
    capture.close()
    await bench.end(sibling)


async def test_memory_that_is_not_what_it_was_is_seen(bench: FirecrackerBench, source: LiveVm) -> None:
    """The fake looks at every page: what holds for all the other tests."""
    frozen = bench.tops[source.runtime.pid]
    good, bad = await bench.capture(source), bench.new_capture()
    mapped, _ = bad.memory.map_for_fill()
    mapped[:] = Path(good.memory.path).read_bytes()
    mapped[-1] ^= 1
    Path(bad.devices.path).write_bytes(Path(good.devices.path).read_bytes())
    bad.format = good.format
    del mapped
    bad.seal()
    child = await bench.start_waiting(bad, frozen)
    with pytest.raises(VmmFailed, match="is not what it was"):
        await child.load(bad)
    bench.vms.remove(child)
    good.close()
    bad.close()


async def test_one_that_hangs_in_its_load_holds_nobody_up(bench: FirecrackerBench, source: LiveVm) -> None:
    await bench.run(source, bench.remember("burst", "yes"))
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    children = [await bench.start_waiting(capture, frozen) for _ in range(BURST)]
    stuck, *others = children
    name = f"ramet-{stuck.agent_socket.parent.name}"
    arm(bench.faults, "hang", "PUT /snapshot/load", name)
    failures: list[VmmFailed] = []

    async def load_stuck() -> None:
        try:
            await stuck.load(capture)
        except VmmFailed as failure:
            failures.append(failure)

    async with create_task_group() as group:
        with watch_new_files(bench.faults) as taken:
            group.start_soon(load_stuck)
            while not is_taken(bench.faults, "hang", "PUT /snapshot/load", name):
                await taken.wait()
        async with create_task_group() as burst:
            for child in others:
                burst.start_soon(bench.wake, child, capture, "child")
        for child in others:
            assert await bench.run(child, bench.recall("burst")) == "yes"
            assert not await child.is_paused()
        assert not await source.is_paused()
        assert len(await bench.driver.find()) == BURST + 1
        assert not failures
        await stuck.kill()
    assert len(failures) == 1
    bench.vms.remove(stuck)
    capture.close()
    for child in others:
        await bench.end(child)


async def test_the_first_capture_of_a_booted_guest_has_holes_for_what_was_never_written(
    bench: FirecrackerBench,
) -> None:
    parent = await bench.boot()
    await bench.run(parent, bench.remember("first", "1"))
    frozen = bench.tops[parent.runtime.pid]
    first = await bench.capture(parent)
    assert 0 < first.memory.resident_bytes < bench.memory_bytes // 2
    child = await bench.child(first, frozen)
    assert await bench.run(child, bench.recall("first")) == "1"
    second = await bench.capture(parent)
    grandchild = await bench.child(second, bench.tops[parent.runtime.pid])
    assert await bench.run(grandchild, bench.recall("first")) == "1"
    first.close()
    second.close()
    for vm in (child, grandchild, parent):
        await bench.end(vm)


# What it cannot do

NIC = Nic("02:00:00:00:00:07", -1, "lo")


async def test_what_firecracker_has_no_place_for_is_refused_before_anything_is_started(
    bench: FirecrackerBench,
) -> None:
    machine = bench.machine(bench.layers.create(bench.overlay_bytes))
    layered = DiskImage(((bench.folder / "top.qcow2", "qcow2"),))
    for refused in (
        replace(machine, volumes=(machine.overlay,) * 9),
        replace(machine, overlay=layered),
        replace(machine, nic=Nic("02:00:00:00:00:07", 3)),
    ):
        with pytest.raises(VmmUnsupported):
            await bench.driver.boot(refused)
    assert machine.instance not in await bench.driver.find()


async def test_a_child_has_a_network_card_of_its_own(bench: FirecrackerBench) -> None:
    layer = bench.layers.create(bench.overlay_bytes)
    parent = bench.keep(await bench.driver.boot(replace(bench.machine(layer), nic=NIC)), layer)
    capture = await bench.capture(parent)
    machine = replace(bench.machine(bench.layers.create_on(layer, 0)), nic=NIC)
    missing = replace(machine, nic=replace(NIC, tap_name="nowhere"))
    lost = await bench.driver.start_waiting(missing, capture)
    with pytest.raises(VmmFailed, match="no TAP nowhere"):
        await lost.load(capture)
    child = bench.keep(await bench.driver.start_waiting(machine, capture), layer)
    await bench.wake(child, capture, "child")
    await bench.end(child)
    capture.close()
    await bench.end(parent)


async def test_an_old_firecracker_cannot_give_a_child_its_own_network_card(tmp_path: Path) -> None:
    old = FirecrackerBench(tmp_path, "1.11.0")
    machine = replace(old.machine(old.layers.create(old.overlay_bytes)), nic=NIC)
    capture = old.new_capture()
    with pytest.raises(LiveForkUnsupported, match=r"1\.11\.0"):
        await old.driver.start_waiting(machine, capture)
    capture.close()
    assert await old.driver.find() == {}
