"""The driver on a real Cloud Hypervisor, with a guest of a hundred bytes.

Skipped, saying so, where there is none (on the path, or RAMET_CLOUD_HYPERVISOR) or no /dev/kvm.
"""

import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from ramet.core.errors import Broken
from ramet.linux.memfd import SealableFile
from ramet.linux.tun import open_tap
from ramet.vmm.cloud_hypervisor.build import VOLUME_COUNT_MAX
from ramet.vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from ramet.vmm.cloud_hypervisor.vm import CloudHypervisorVm
from ramet.vmm.jail import JailConfig, JailMode
from ramet.vmm.port import ExitReason, Nic, VmmFailed
from tests.net.namespaces import own_namespace
from tests.vmm.tiny_bench import DISK_BYTES, TIMEOUT_S, TinyBench, counted, goes_on, until
from tests.vmm.tiny_contract import TinyContract

_API = "/api/v1"


def why_not() -> str | None:
    """Return why there is nothing to try the driver on."""
    try:
        CloudHypervisorDriver.open(Path("/"), jail=JailConfig(JailMode.OFF))
    except Broken as error:
        return str(error)
    return None if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be used"


WHY_NOT = why_not()
JAILS = [JailMode.OFF, JailMode.ON] if os.geteuid() == 0 else [JailMode.OFF]
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


class RealBench(TinyBench[CloudHypervisorVm]):
    """Cloud Hypervisor."""

    kind = CloudHypervisorVm

    def open_driver(self) -> CloudHypervisorDriver:
        return CloudHypervisorDriver.open(self.folder / "instances", jail=self.jail)


@pytest.fixture(params=JAILS)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[RealBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-ch-"))
    bench = RealBench(folder, request.param)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


class TestCloudHypervisor(TinyContract):
    """The contract."""

    boot_calls = (f"GET {_API}/vmm.ping", f"PUT {_API}/vm.create", f"PUT {_API}/vm.boot")
    capture_calls = (f"PUT {_API}/vm.pause", f"PUT {_API}/vm.snapshot", f"PUT {_API}/vm.resume")
    load_calls = (f"PUT {_API}/vm.restore", f"PUT {_API}/vm.resume")
    volume_count_max = VOLUME_COUNT_MAX
    stores_zeros = False
    unfiltered_threads = frozenset({"cloud-hyperviso"})


async def test_a_child_has_a_network_card_of_its_own(namespace: None, bench: RealBench) -> None:
    taps = [open_tap(f"tap{number}") for number in range(2)]
    nics = [Nic("02:00:00:00:00:07", tap) for tap in taps]
    layer = bench.layers.create(DISK_BYTES)
    source = bench.keep(await bench.driver.boot(replace(bench.machine(layer), nic=nics[0])), layer)
    await until(lambda: len(counted(source)) > 2)
    capture = await bench.capture(source)
    below = bench.layers.create_on(layer, DISK_BYTES)
    machine = replace(bench.machine(below), nic=nics[1])
    child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
    await child.load(capture)
    await goes_on(child)
    assert [card_of(vm.runtime.pid) for vm in (source, child)] == ["tap0", "tap1"]
    capture.close()
    for tap in taps:
        os.close(tap)


def card_of(pid: int) -> str:
    """Return the name of the one TAP that a process has open."""
    found = {
        line.split()[1]
        for info in Path(f"/proc/{pid}/fdinfo").iterdir()
        for line in info.read_text().splitlines()
        if line.startswith("iff:")
    }
    (name,) = found
    return name


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


async def test_its_console_can_be_cut_short_while_it_writes_it(bench: RealBench) -> None:
    vm = await bench.boot()
    await until(lambda: len(counted(vm)) > 2)
    console = vm.agent_socket.parent / "console.log"
    os.truncate(console, 0)
    await until(lambda: console.stat().st_size > 0)
    assert not console.read_bytes().startswith(b"\0")
