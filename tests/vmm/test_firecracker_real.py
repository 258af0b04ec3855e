"""The driver and the pager on a real Firecracker, with a guest of a hundred bytes.

Skipped, saying so, where there is no Firecracker (on the path, or RAMET_FIRECRACKER) or no /dev/kvm.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ramet.core.errors import Broken
from ramet.linux.memfd import SealableFile
from ramet.pager import PagerService, SessionPhase
from ramet.vmm.firecracker.build import VOLUME_COUNT_MAX
from ramet.vmm.firecracker.driver import FirecrackerDriver
from ramet.vmm.firecracker.features import NETWORK_OVERRIDES
from ramet.vmm.firecracker.rewrite import rewrite_folder
from ramet.vmm.firecracker.vm import FirecrackerVm, Pager
from ramet.vmm.jail import JailConfig, JailMode
from ramet.vmm.port import (
    Capture,
    Nic,
    NicLimits,
    VmmFailed,
)
from tests.net.namespaces import own_namespace, run_ip
from tests.vmm.firecracker_bench import always_paged
from tests.vmm.test_firecracker_pager import client_at, pager_at
from tests.vmm.tiny_bench import DISK_BYTES, TinyBench, counted, goes_on, until
from tests.vmm.tiny_contract import BURST, TinyContract, captured, check_burst


def why_not() -> str | None:
    """Return why there is nothing to try the driver on."""
    try:
        FirecrackerDriver.open(Path("/"), jail=JailConfig(JailMode.OFF))
    except Broken as error:
        return str(error)
    return None if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be used"


WHY_NOT = why_not()
IS_ROOT = os.geteuid() == 0
JAILS = [JailMode.OFF, JailMode.ON] if IS_ROOT else [JailMode.OFF]
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


class RealBench(TinyBench[FirecrackerVm]):
    """Firecracker."""

    kind = FirecrackerVm

    def open_driver(self, pager: Pager | None = None) -> FirecrackerDriver:
        return FirecrackerDriver.open(
            self.folder / "instances", pager=pager, jail=self.jail, choose=always_paged
        )


@pytest.fixture(params=JAILS)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[RealBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    bench = RealBench(folder, request.param)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture
async def pager(bench: RealBench) -> AsyncIterator[PagerService]:
    async with pager_at(bench.folder / "pagers") as service:
        yield service
        await bench.aclose()


class TestFirecracker(TinyContract):
    """The contract."""

    boot_calls = (
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
    capture_calls = ("PATCH /vm", "PATCH /drives/overlay", "PUT /snapshot/create")
    load_calls = ("PUT /snapshot/load",)
    volume_count_max = VOLUME_COUNT_MAX
    stores_zeros = True


async def test_a_child_is_served_by_the_pager(bench: RealBench, pager: PagerService) -> None:
    _, frozen, capture = await captured(bench)
    child = await bench.child(capture, frozen, bench.open_driver(pager))
    await child.load(capture)
    await goes_on(child)
    assert counted(child)[0] > 1
    (session,) = (await client_at(bench.folder / "pagers").statistics()).sessions
    assert session.phase is SessionPhase.SERVING
    assert session.vmm_pid == child.runtime.pid
    assert session.fault_count > 0
    grandchild_frozen = bench.tops[child.runtime.pid]
    second = await bench.capture(child)
    grandchild = await bench.child(second, grandchild_frozen, bench.open_driver(pager))
    await grandchild.load(second)
    await goes_on(grandchild)
    assert counted(grandchild)[0] > counted(child)[0]
    capture.close()
    second.close()


async def test_many_children_are_served_by_the_pager_at_once(bench: RealBench, pager: PagerService) -> None:
    source, frozen, capture = await captured(bench)
    await source.kill()
    driver = bench.open_driver(pager)
    await check_burst([await bench.child(capture, frozen, driver) for _ in range(BURST)], capture)


async def test_what_cannot_be_loaded_ends_the_process_with_a_reason_and_can_be_tried_again(
    bench: RealBench,
) -> None:
    _, frozen, capture = await captured(bench)
    broken = Capture(capture.memory, SealableFile("ramet-devices"), capture.format)
    content = bytearray(Path(capture.devices.path).read_bytes())
    content[100] ^= 1
    os.pwrite(broken.devices.fd, content, 0)
    broken.devices.seal()
    child = await bench.child(broken, frozen)
    with pytest.raises(VmmFailed, match="CRC"):
        await child.load(broken)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    sibling = await bench.child(capture, frozen)
    await sibling.load(capture)
    await goes_on(sibling)
    capture.close()


def limits_in(config: Mapping[str, object]) -> dict[str, int | None]:
    """Return the bytes per second at most of the one network card, by direction."""
    (nic,) = cast("list[dict[str, Any]]", config["network-interfaces"])
    found: dict[str, int | None] = {}
    for name in ("rx", "tx"):
        bucket = (nic.get(f"{name}_rate_limiter") or {}).get("bandwidth")
        found[name] = bucket and bucket["size"] * 1000 // bucket["refill_time"]
    return found


@pytest.mark.skipif(not IS_ROOT, reason="making a TAP takes root")
async def test_a_network_card_is_held_to_its_own_limits(namespace: None, bench: RealBench) -> None:
    for name in ("tap0", "tap1"):
        run_ip(f"tuntap add {name} mode tap")
    layer = bench.layers.create(DISK_BYTES)
    nic = Nic("02:00:00:00:00:07", -1, "tap0", NicLimits(5_000_000, 1_000_000))
    source = bench.keep(await bench.driver.boot(replace(bench.machine(layer), nic=nic)), layer)
    assert limits_in(await source._api.get("/vm/config")) == {"rx": 5_000_000, "tx": 1_000_000}
    capture = await bench.capture(source)
    if not source._demand_release().has(NETWORK_OVERRIDES):
        pytest.skip("it has no children with a network card")
    for limits, wanted in (
        (NicLimits(None, 2_000_000), {"rx": None, "tx": 2_000_000}),
        (NicLimits(), {"rx": None, "tx": None}),
        (None, {"rx": 5_000_000, "tx": 1_000_000}),
    ):
        below = bench.layers.create_on(layer, DISK_BYTES)
        own = replace(nic, tap_name="tap1", limits=limits)
        machine = replace(bench.machine(below), nic=own)
        child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
        await child.load(capture)
        assert limits_in(await child._api.get("/vm/config")) == wanted
        await goes_on(child)
        await child.kill()


async def test_a_snapshot_of_another_folder_is_loaded_when_its_paths_are_rewritten(bench: RealBench) -> None:
    theirs, ours = bench.folder / "theirs", bench.folder / "ours00"
    for folder in (theirs, ours):
        folder.mkdir()
        (folder / "root.img").write_bytes(bytes(DISK_BYTES))
    layer = bench.layers.create(DISK_BYTES)
    machine = replace(bench.machine(layer), root=theirs / "root.img")
    source = bench.keep(await bench.driver.boot(machine), layer)
    await until(lambda: len(counted(source)) > 2)
    capture = await bench.capture(source)
    await source.kill()
    shutil.rmtree(theirs)
    content = Path(capture.devices.path).read_bytes()
    rewritten, count = rewrite_folder(content, str(theirs), str(ours))
    assert count == 1
    imported = Capture(capture.memory, SealableFile("ramet-devices"), capture.format)
    os.pwrite(imported.devices.fd, rewritten, 0)
    imported.devices.seal()
    below = bench.layers.create_on(layer, DISK_BYTES)
    child_machine = replace(bench.machine(below), root=ours / "root.img")
    child = bench.keep(await bench.driver.start_waiting(child_machine, imported), below)
    await child.load(imported)
    await goes_on(child)
    imported.close()


async def test_its_metrics_and_its_log_can_be_cut_short_while_it_writes_them(bench: RealBench) -> None:
    vm = await bench.boot()
    for name in ("metrics.json", "vmm.log"):
        file = vm.agent_socket.parent / name
        for _ in range(2):
            os.truncate(file, 0)
            await vm._api.put("/actions", {"action_type": "FlushMetrics"})
            assert 0 < file.stat().st_size < 65_536
            assert not file.read_bytes().startswith(b"\0")
