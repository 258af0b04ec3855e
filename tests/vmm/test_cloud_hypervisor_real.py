"""The driver on a real Cloud Hypervisor, with a guest of a hundred bytes.

Skipped, saying so, where there is none (on the path, or RAMET_CLOUD_HYPERVISOR) or no /dev/kvm.
"""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio import create_task_group

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.linux.memfd import SealableFile
from ramet.linux.process import read_maps
from ramet.vmm.cloud_hypervisor.build import VOLUME_COUNT_MAX
from ramet.vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from ramet.vmm.port import ExitReason, VmmFailed
from tests.net.namespaces import own_namespace
from tests.vmm import tiny_guest
from tests.vmm.bench import digest, open_files
from tests.vmm.tiny_bench import (
    DISK_BYTES,
    TIMEOUT_S,
    TinyBench,
    counted,
    goes_on,
    kill_at,
    make_volumes,
    until,
)

BURST = 25


def why_not() -> str | None:
    """Return why there is nothing to try the driver on."""
    try:
        CloudHypervisorDriver.open(Path("/"))
    except Broken as error:
        return str(error)
    return None if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be used"


WHY_NOT = why_not()
IS_ROOT = os.geteuid() == 0
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


class RealBench(TinyBench):
    """Cloud Hypervisor."""

    def open_driver(self) -> CloudHypervisorDriver:
        return CloudHypervisorDriver.open(self.folder / "instances")


@pytest.fixture
async def bench() -> AsyncIterator[RealBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-ch-"))
    bench = RealBench(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


async def test_a_guest_runs_and_stands_still_and_runs(bench: RealBench) -> None:
    vm = await bench.boot()
    await until(lambda: len(counted(vm)) > 2)
    async with vm.paused():
        assert await vm.is_paused()
        before = counted(vm)
        await bench.driver.find()
        assert counted(vm) == before
    assert not await vm.is_paused()
    await goes_on(vm)
    assert counted(vm) == list(range(1, len(counted(vm)) + 1))


async def test_a_child_goes_on_where_its_source_was_and_neither_sees_the_other(bench: RealBench) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    assert 0 < capture.memory.resident_bytes < bench.memory_bytes // 2  # Zeros are holes.
    before = digest(capture.memory)
    at_capture = len(counted(source))
    await goes_on(source)
    child = await bench.child(capture, frozen)
    await child.load(capture)
    await goes_on(child)
    assert 1 < counted(child)[0] <= at_capture + 1
    await goes_on(source)
    assert counted(source) == list(range(1, len(counted(source)) + 1))
    assert digest(capture.memory) == before
    assert await child.top_layer() == bench.layers.path(bench.tops[child.runtime.pid])
    assert await source.top_layer() == bench.layers.path(bench.tops[source.runtime.pid])
    mapped = [maps for maps in read_maps(child.runtime.pid) if "ramet-memory" in maps[3]]
    assert {permissions for _, _, permissions, _ in mapped} == {"rw-p"}
    capture.close()


async def test_of_a_child_only_the_changes_are_captured_however_often(bench: RealBench) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    base = capture.memory
    assert isinstance(base, SealableFile)
    child = await bench.child(capture, frozen)
    await child.load(capture)
    await goes_on(child)
    last = counted(child)[-1]
    second = await bench.capture(child, base)
    grandchild = await bench.child(second, bench.tops[child.runtime.pid])
    await grandchild.load(second)
    await goes_on(grandchild)
    assert counted(grandchild)[0] > last
    second.memory.close()


async def test_many_children_load_one_capture_at_once(bench: RealBench) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    await source.kill()
    children = [await bench.child(capture, frozen) for _ in range(BURST)]
    async with create_task_group() as group:
        for child in children:
            group.start_soon(child.load, capture)
    for child in children:
        await goes_on(child)
        await child.kill()
    assert len({counted(child)[0] for child in children}) == 1
    capture.close()


async def test_a_guest_that_resets_itself_is_told_apart_from_one_that_we_ended(bench: RealBench) -> None:
    resetting = await bench.boot(tiny_guest.build(last_round=3))
    with anyio.fail_after(TIMEOUT_S):
        assert await resetting.wait_exited() is ExitReason.GUEST_RESET
    assert not Path(f"/proc/{resetting.runtime.pid}").exists()
    killed, crashed = await bench.boot(), await bench.boot()
    await killed.kill()
    assert await killed.wait_exited() is ExitReason.KILLED
    os.kill(crashed.runtime.pid, signal.SIGKILL)
    assert await crashed.wait_exited() is ExitReason.UNKNOWN


async def test_an_end_in_order_is_told_apart(bench: RealBench) -> None:
    vm = await bench.boot()
    await until(lambda: len(counted(vm)) > 2)
    with anyio.fail_after(TIMEOUT_S):
        await vm._api.put("/api/v1/vmm.shutdown", None)
        assert await vm.wait_exited() is ExitReason.GUEST_SHUTDOWN


async def test_devices_of_no_kind_are_refused_and_the_process_is_gone(bench: RealBench) -> None:
    source = await bench.boot()
    frozen = bench.tops[source.runtime.pid]
    good, bad = await bench.capture(source), await bench.capture(source)
    bad.devices = SealableFile("ramet-devices")
    content = json.loads(os.pread(good.devices.fd, good.devices.size_bytes, 0))
    content["state"]["snapshots"]["device-manager"]["snapshot_data"]["state"] = "{}"
    os.pwrite(bad.devices.fd, json.dumps(content).encode(), 0)
    child = await bench.child(bad, frozen)
    with pytest.raises(VmmFailed, match="did not load"):
        await child.load(bad)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    sibling = await bench.child(good, frozen)
    await sibling.load(good)
    await goes_on(sibling)
    good.close()
    bad.close()


@pytest.mark.parametrize("call", ["vmm.ping", "vm.create", "vm.boot"])
async def test_one_that_is_killed_at_any_call_of_its_boot_is_an_error_and_gone(
    bench: RealBench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    kill_at(monkeypatch, f"{'GET' if call == 'vmm.ping' else 'PUT'} /api/v1/{call}")
    with pytest.raises(VmmFailed):
        await bench.boot()
    assert await bench.driver.find() == {}


@pytest.mark.parametrize("call", ["vm.pause", "vm.snapshot", "vm.resume"])
async def test_one_that_is_killed_at_any_call_of_its_capture_is_an_error_and_gone(
    bench: RealBench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    source = await bench.boot()
    kill_at(monkeypatch, f"PUT /api/v1/{call}")
    with pytest.raises(VmmFailed):
        await bench.capture(source)
    assert await source.wait_exited() is ExitReason.UNKNOWN
    assert await bench.driver.find() == {}


@pytest.mark.parametrize("call", ["vm.restore", "vm.resume"])
async def test_one_that_is_killed_at_its_load_leaves_the_capture_for_another(
    bench: RealBench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    child = await bench.child(capture, frozen)
    kill_at(monkeypatch, f"PUT /api/v1/{call}")
    with pytest.raises(VmmFailed, match="did not load"):
        await child.load(capture)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    sibling = await bench.child(capture, frozen)
    await sibling.load(capture)
    await goes_on(sibling)
    capture.close()


async def test_a_running_one_is_found_and_adopted_by_another_driver(bench: RealBench) -> None:
    vm = await bench.boot()
    await until(lambda: len(counted(vm)) > 2)
    instance = InstanceId(vm.agent_socket.parent.name)
    await vm.detach()
    bench.vms.remove(vm)
    other = bench.open_driver()
    found = await other.find()
    assert found.keys() == {instance}
    adopted = bench.keep(
        await other.adopt(instance, vm.agent_socket.parent, found[instance]), bench.tops[vm.runtime.pid]
    )
    frozen = bench.tops[adopted.runtime.pid]
    capture = await bench.capture(adopted)
    child = await bench.child(capture, frozen)
    await child.load(capture)
    await goes_on(child)
    capture.close()


async def test_its_console_can_be_cut_short_while_it_writes_it(bench: RealBench) -> None:
    vm = await bench.boot()
    await until(lambda: len(counted(vm)) > 2)
    console = vm.agent_socket.parent / "console.log"
    os.truncate(console, 0)
    await until(lambda: console.stat().st_size > 0)
    assert not console.read_bytes().startswith(b"\0")


async def test_a_guest_and_its_child_have_as_many_volumes_as_there_are_places(bench: RealBench) -> None:
    (places := bench.folder / "volumes").mkdir()
    volumes = make_volumes(places, VOLUME_COUNT_MAX)
    layer = bench.layers.create(DISK_BYTES)
    source = bench.keep(await bench.driver.boot(replace(bench.machine(layer), volumes=volumes)), layer)
    await until(lambda: len(counted(source)) > 2)
    capture = await bench.capture(source)
    await source.kill()
    below = bench.layers.create_on(layer, DISK_BYTES)
    machine = replace(bench.machine(below), volumes=volumes)
    child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
    await child.load(capture)
    await goes_on(child)
    assert {str(path) for volume in volumes for path, _ in volume.layers} <= open_files(child.runtime.pid)
    assert await child.top_layer() == bench.layers.path(below)
    capture.close()
