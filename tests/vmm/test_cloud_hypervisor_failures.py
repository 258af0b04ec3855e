"""What a Cloud Hypervisor that refuses, hangs or dies at any call leaves behind: a capture to try again."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio import create_task_group

from ramet.linux.inotify import watch_new_files
from ramet.linux.tun import open_tap
from ramet.vmm.port import DiskImage, LiveFork, Nic, VmmFailed, VmmSilent, VmmUnsupported
from tests.net.namespaces import own_namespace
from tests.vmm.bench import LiveVm, digest
from tests.vmm.cloud_hypervisor_bench import CloudHypervisorBench
from tests.vmm.fake_firecracker.faults import Kind, arm, is_taken

pytestmark = pytest.mark.anyio

BOOT_CALLS = ("GET vmm.ping", "PUT vm.create", "PUT vm.add-net", "PUT vm.boot")
CAPTURE_CALLS = ("PUT vm.pause", "PUT vm.snapshot", "PUT vm.resume")
LOAD_CALLS = ("PUT vm.restore", "PUT vm.resume")
EVERY_KIND: tuple[Kind, ...] = ("fail", "late-fail", "die", "late-die", "hang", "late-hang")
BURST = 25
PATIENCE_S = 1.0
"""For an answer of one that is made to hang."""
NAMED_NIC = Nic("02:00:00:00:00:07", -1, "lo")


@pytest.fixture(scope="module")
async def bench() -> AsyncIterator[CloudHypervisorBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-ch-"))
    bench = CloudHypervisorBench(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: CloudHypervisorBench) -> LiveVm:
    return await bench.boot()


@pytest.fixture(scope="module")
def impatient_driver(bench: CloudHypervisorBench) -> LiveFork:
    return bench.open_driver(load_timeout_s=PATIENCE_S, command_timeout_s=PATIENCE_S)


@pytest.fixture
def impatient(bench: CloudHypervisorBench, impatient_driver: LiveFork) -> Iterator[None]:
    """Have whatever is started wait for an answer for a moment only."""
    driver = bench.driver
    bench.driver = impatient_driver
    yield
    bench.driver = driver


@asynccontextmanager
async def nothing_left(bench: CloudHypervisorBench) -> AsyncIterator[None]:
    """Check that what is done inside leaves no process, no descriptor of ours and no half of a snapshot."""
    processes, open_before = await bench.driver.find(), own_descriptors()
    yield
    assert await bench.driver.find() == processes
    assert not [*bench.instances.glob("*/capture"), *bench.instances.glob("*/load")]
    with anyio.fail_after(30):
        while own_descriptors() != open_before:  # A connection is closed a little later.
            await anyio.lowlevel.checkpoint()


def own_descriptors() -> Counter[str]:
    """Return of what kinds our descriptors are."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.readlink().name.partition(":[")[0]] += 1
        except FileNotFoundError:
            continue  # That by which we look.
    return found


# Boot


@pytest.mark.parametrize("call", BOOT_CALLS)
@pytest.mark.parametrize("kind", EVERY_KIND)
async def test_a_boot_that_fails_leaves_nothing(
    bench: CloudHypervisorBench, impatient: None, call: str, kind: Kind
) -> None:
    machine = replace(bench.machine(bench.layers.create(bench.overlay_bytes)), nic=NAMED_NIC)
    arm(bench.faults, kind, call)
    async with nothing_left(bench):
        with pytest.raises(VmmFailed, match="did not start") as failed:
            await bench.driver.boot(machine)
    assert is_taken(bench.faults, kind, call)
    reason = {"fail": "on demand", "die": "ended|cannot be asked", "hang": "did not answer"}
    failed.match(reason[kind.removeprefix("late-")])


# Capture


@pytest.mark.parametrize("call", CAPTURE_CALLS[:2])
@pytest.mark.parametrize("kind", ["fail", "late-fail"])
async def test_a_source_runs_on_when_its_capture_was_refused_and_can_be_captured_again(
    bench: CloudHypervisorBench, source: LiveVm, call: str, kind: Kind
) -> None:
    child = await bench.fork(source)
    arm(bench.faults, kind, call)
    target = bench.new_capture()
    async with nothing_left(bench):
        with pytest.raises(VmmFailed, match="on demand"):
            await bench.capture(child, target)
        assert is_taken(bench.faults, kind, call)
        assert not await child.is_paused()
    target.close()
    async with bench.channel(child) as channel:
        await channel.thaw()
    await bench.run(child, bench.store("after", call))
    await bench.run(child, bench.remember("after", kind))
    frozen = bench.tops[child.runtime.pid] = bench.layers.id_of(await child.top_layer())
    capture = await bench.capture(child)
    grandchild = await bench.child(capture, frozen)
    capture.close()
    assert await bench.run(grandchild, bench.recall("after")) == kind
    for vm in (grandchild, child):
        assert await bench.run(vm, bench.fetch("after")) == call
        await bench.end(vm)


@pytest.mark.parametrize("kind", ["fail", "late-fail"])
async def test_a_source_that_will_not_go_on_after_its_capture_is_asked_again(
    bench: CloudHypervisorBench, source: LiveVm, kind: Kind
) -> None:
    await bench.run(source, bench.remember("asked", kind))
    frozen = bench.tops[source.runtime.pid]
    arm(bench.faults, kind, "PUT vm.resume")
    capture = await bench.capture(source)
    assert is_taken(bench.faults, kind, "PUT vm.resume")
    assert not await source.is_paused()
    child = await bench.child(capture, frozen)
    capture.close()
    assert await bench.run(child, bench.recall("asked")) == kind
    await bench.end(child)


@pytest.mark.parametrize("call", CAPTURE_CALLS)
@pytest.mark.parametrize("kind", ["die", "late-die"])
async def test_the_end_of_a_source_in_its_capture_is_an_error_and_its_disk_is_whole(
    bench: CloudHypervisorBench, source: LiveVm, call: str, kind: Kind
) -> None:
    child = await bench.fork(source)
    await bench.run(child, bench.store("before", call))
    arm(bench.faults, kind, call)
    top, target = bench.tops[child.runtime.pid], bench.new_capture()
    with pytest.raises(VmmFailed):
        await bench.capture(child, target)
    target.close()
    await child.wait_exited()
    assert not [*child.agent_socket.parent.glob("capture")]
    bench.vms.remove(child)
    again = bench.keep(await bench.driver.boot(bench.machine(bench.layers.create_on(top, 0))), top)
    assert await bench.run(again, bench.fetch("before")) == call
    await bench.end(again)


@pytest.mark.parametrize("call", CAPTURE_CALLS)
@pytest.mark.parametrize("kind", ["hang", "late-hang"])
async def test_a_source_that_hangs_in_its_capture_is_an_error_in_time_and_its_disk_is_whole(
    bench: CloudHypervisorBench, source: LiveVm, impatient: None, call: str, kind: Kind
) -> None:
    async with nothing_left(bench):
        child = await bench.fork(source)
        await bench.run(child, bench.store("before", call))
        arm(bench.faults, kind, call)
        top, target = bench.tops[child.runtime.pid], bench.new_capture()
        with pytest.raises(VmmSilent):
            await bench.capture(child, target)
        target.close()
        assert is_taken(bench.faults, kind, call)
        assert Path(f"/proc/{child.runtime.pid}").exists()  # Whether to end it is not for the driver to say.
        await bench.end(child)
    again = bench.keep(await bench.driver.boot(bench.machine(bench.layers.create_on(top, 0))), top)
    assert await bench.run(again, bench.fetch("before")) == call
    await bench.end(again)


# Load


@pytest.mark.parametrize("call", LOAD_CALLS)
@pytest.mark.parametrize("kind", EVERY_KIND)
async def test_a_load_that_fails_ends_the_process_and_leaves_the_capture_for_another_try(
    bench: CloudHypervisorBench, source: LiveVm, impatient: None, call: str, kind: Kind
) -> None:
    await bench.run(source, bench.remember("kind", kind))
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    before = digest(capture.memory), digest(capture.devices)
    async with nothing_left(bench):
        child = await bench.start_waiting(capture, frozen)
        arm(bench.faults, kind, call)
        with pytest.raises(VmmFailed, match="did not load"):
            await child.load(capture)
        assert is_taken(bench.faults, kind, call)
        assert not Path(f"/proc/{child.runtime.pid}").exists()
        bench.vms.remove(child)
    assert (digest(capture.memory), digest(capture.devices)) == before
    sibling = await bench.child(capture, frozen)
    assert await bench.run(sibling, bench.recall("kind")) == kind
    capture.close()
    await bench.end(sibling)


@pytest.mark.parametrize("kind", ["fail", "die", "hang"])
async def test_one_that_does_not_come_to_wait_leaves_nothing(
    bench: CloudHypervisorBench, source: LiveVm, impatient: None, kind: Kind
) -> None:
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    arm(bench.faults, kind, "GET vmm.ping")
    async with nothing_left(bench):
        with pytest.raises(VmmFailed, match="did not start"):
            await bench.start_waiting(capture, frozen)
    await bench.end(await bench.child(capture, frozen))
    capture.close()


async def test_memory_that_is_not_what_it_was_is_seen(bench: CloudHypervisorBench, source: LiveVm) -> None:
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


async def test_one_that_hangs_in_its_load_holds_nobody_up(
    bench: CloudHypervisorBench, source: LiveVm
) -> None:
    await bench.run(source, bench.remember("burst", "yes"))
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    children = [await bench.start_waiting(capture, frozen) for _ in range(BURST)]
    stuck, *others = children
    name = stuck.agent_socket.parent.name
    arm(bench.faults, "hang", "PUT vm.restore", name)
    failures: list[VmmFailed] = []

    async def load_stuck() -> None:
        try:
            await stuck.load(capture)
        except VmmFailed as failure:
            failures.append(failure)

    async with create_task_group() as group:
        with watch_new_files(bench.faults) as taken:
            group.start_soon(load_stuck)
            while not is_taken(bench.faults, "hang", "PUT vm.restore", name):
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


async def test_a_sleeper_sleeps_and_wakes_again_and_again(
    bench: CloudHypervisorBench, source: LiveVm
) -> None:
    """From the second time on what differs from the first is stored."""
    await bench.run(source, bench.remember("first", "0"))
    frozen = bench.tops[source.runtime.pid]
    whole = await bench.capture(source)
    sleeper = await bench.child(whole, frozen)
    for turn in ("1", "2", "3"):
        await bench.run(sleeper, bench.remember("turn", turn))
        await bench.run(sleeper, bench.store("turn", turn))
        frozen = bench.tops[sleeper.runtime.pid]
        change = await bench.capture(sleeper, bench.new_capture(whole.memory))
        assert change.changes is not None
        await bench.end(sleeper)
        sleeper = await bench.child(change, frozen)
        change.memory.close()
        change.devices.close()
        assert await bench.run(sleeper, bench.recall("first")) == "0"
        assert await bench.run(sleeper, bench.recall("turn")) == turn
        assert await bench.run(sleeper, bench.fetch("turn")) == turn
    await bench.end(sleeper)
    whole.close()


# What it cannot do, and its network card


async def test_qcow2_layers_are_refused_before_anything_is_started(bench: CloudHypervisorBench) -> None:
    machine = bench.machine(bench.layers.create(bench.overlay_bytes))
    layered = DiskImage(((bench.folder / "top.qcow2", "qcow2"),))
    with pytest.raises(VmmUnsupported, match="raw disks only"):
        await bench.driver.boot(replace(machine, overlay=layered))
    assert machine.instance not in await bench.driver.find()


@pytest.mark.netns
async def test_a_child_has_a_network_card_of_its_own(bench: CloudHypervisorBench) -> None:
    with own_namespace():
        taps = [open_tap(f"tap{number}") for number in range(2)]
        nics = [replace(NAMED_NIC, tap_fd=tap, tap_name=None) for tap in taps]
        layer = bench.layers.create(bench.overlay_bytes)
        async with nothing_left(bench):
            parent = bench.keep(await bench.driver.boot(replace(bench.machine(layer), nic=nics[0])), layer)
            capture = await bench.capture(parent)
            without = bench.machine(bench.layers.create_on(layer, 0))
            lost = await bench.driver.start_waiting(without, capture)
            with pytest.raises(VmmFailed, match="network card"):
                await lost.load(capture)
            machine = replace(bench.machine(bench.layers.create_on(layer, 0)), nic=nics[1])
            child = bench.keep(await bench.driver.start_waiting(machine, capture), layer)
            await bench.wake(child, capture, "child")
            await bench.end(child)
            capture.close()
            await bench.end(parent)
        for tap in taps:
            os.close(tap)
