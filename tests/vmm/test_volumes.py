"""Disks beside an instance's own, of the VMMs that know raw disks only: on strict fakes."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from ramet.vmm.port import DiskImage, VmmFailed, VmmUnsupported
from tests.vmm.cloud_hypervisor_bench import CloudHypervisorBench
from tests.vmm.fake_rest_bench import FakeRestBench
from tests.vmm.firecracker_bench import FirecrackerBench

pytestmark = pytest.mark.anyio
MIB = 1 << 20
MOST = 8


@pytest.fixture(params=[FirecrackerBench, CloudHypervisorBench])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[FakeRestBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-vm-"))
    bench: FakeRestBench = request.param(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


def volume(path: Path, *below: Path, is_read_only: bool = False) -> DiskImage:
    """Return a volume; it is made here, unless it is to be a copy of what is `below`."""
    path.write_bytes(b"" if below else bytes(MIB))
    raw: Literal["raw"] = "raw"
    return DiskImage(tuple((each, raw) for each in (path, *below)), is_read_only)


def opened(pid: int, path: Path) -> set[int]:
    """Return how a process has a file open: os.O_RDONLY, os.O_RDWR."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if os.path.realpath(f"/proc/{pid}/fd/{fd}") == str(path):
            line = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()[1]
            found.add(int(line.split()[1], 8) & os.O_ACCMODE)
    return found


async def test_volumes_are_opened_as_they_are_to_be_and_a_child_has_its_own(bench: FakeRestBench) -> None:
    # In the folder of the layers, too: which of them is the overlay is clear nevertheless.
    places = bench.folder / "layers", bench.folder
    written, read = volume(places[0] / "written"), volume(places[1] / "read", is_read_only=True)
    layer = bench.layers.create(bench.overlay_bytes)
    machine = replace(bench.machine(layer), volumes=(written, read))
    source = bench.keep(await bench.driver.boot(machine), layer)
    assert opened(source.runtime.pid, places[0] / "written") == {os.O_RDWR}
    assert opened(source.runtime.pid, places[1] / "read") == {os.O_RDONLY}
    assert await source.top_layer() == bench.layers.path(layer)
    capture = await bench.capture(source)
    below = bench.layers.create_on(layer, bench.overlay_bytes)
    copy = volume(places[1] / "copy", places[0] / "written")
    (places[0] / "written").write_bytes(b"it is this".ljust(MIB))
    machine = replace(bench.machine(below), volumes=(copy, read))
    child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
    await bench.wake(child, capture, "child")
    assert opened(child.runtime.pid, places[0] / "written") == set()
    assert opened(child.runtime.pid, places[1] / "copy") == {os.O_RDWR}
    assert opened(child.runtime.pid, places[1] / "read") == {os.O_RDONLY}
    assert (places[1] / "copy").read_bytes().startswith(b"it is this")
    assert await child.top_layer() == bench.layers.path(below)
    capture.close()


async def test_a_child_that_has_not_the_volumes_of_its_source_does_not_load(bench: FakeRestBench) -> None:
    layer = bench.layers.create(bench.overlay_bytes)
    machine = replace(bench.machine(layer), volumes=(volume(bench.folder / "one"),))
    source = bench.keep(await bench.driver.boot(machine), layer)
    capture = await bench.capture(source)
    below = bench.layers.create_on(layer, bench.overlay_bytes)
    child = bench.keep(await bench.driver.start_waiting(bench.machine(below), capture), below)
    with pytest.raises(VmmFailed):
        await child.load(capture)
    capture.close()


async def test_there_are_so_many_places_and_no_more(bench: FakeRestBench) -> None:
    layer = bench.layers.create(bench.overlay_bytes)
    volumes = tuple(volume(bench.folder / f"volume{index}") for index in range(MOST + 1))
    machine = bench.machine(layer)
    with pytest.raises(VmmUnsupported, match=f"{MOST} volumes at most, not {MOST + 1}"):
        await bench.driver.boot(replace(machine, volumes=volumes))
    source = bench.keep(await bench.driver.boot(replace(machine, volumes=volumes[:MOST])), layer)
    assert all(opened(source.runtime.pid, bench.folder / f"volume{index}") for index in range(MOST))


async def test_a_volume_of_layers_that_are_not_raw_is_refused(bench: FakeRestBench) -> None:
    machine = bench.machine(bench.layers.create(bench.overlay_bytes))
    layered = DiskImage(((bench.folder / "top.qcow2", "qcow2"),))
    with pytest.raises(VmmUnsupported, match="qcow2"):
        await bench.driver.boot(replace(machine, volumes=(layered,)))
    assert await bench.driver.find() == {}
