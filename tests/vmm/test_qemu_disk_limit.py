"""A limit of what disks let through, on real QEMUs that wait for a guest: none is booted."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.core.errors import Broken
from ramet.vmm.port import DiskImage
from ramet.vmm.qemu.board import BOARDS
from tests.vmm.test_qemu import QemuBench

pytestmark = pytest.mark.anyio

RATE_BYTES_PER_S = 50_000_000


@pytest.fixture(params=BOARDS, ids=lambda board: board.name)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[QemuBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-qemu-"))  # Short: sockets lie in it.
    try:
        bench = QemuBench(folder, request.param)
    except Broken as missing:
        shutil.rmtree(folder)
        pytest.skip(str(missing))
    bench.kernel = bench.initramfs = bench.root = folder / "image"
    bench.root.write_bytes(bytes(1 << 20))
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.mark.parametrize("rate", [None, RATE_BYTES_PER_S])
async def test_all_disks_share_it_and_keep_it_when_their_layers_change(
    bench: QemuBench, rate: int | None
) -> None:
    capture = bench.new_capture()
    layer = bench.layers.create(bench.overlay_bytes)
    volume = DiskImage(((bench.root, "raw"),), is_read_only=True)
    machine = replace(bench.machine(layer), volumes=(volume,), disk_io_bytes_per_s=rate)
    vm = bench.keep(await bench.driver.start_waiting(machine, capture), layer)
    assert await bench.disk_rates(vm) == {rate}
    new_top = bench.layers.path(bench.layers.create_on(layer, bench.overlay_bytes))
    await vm.prepare_disk(new_top)
    await vm.switch_disk(new_top)
    assert await vm.top_layer() == new_top
    assert await bench.disk_rates(vm) == {rate}
    capture.close()
