"""Memory that guests give back, and room that not every hypervisor has, on strict fakes."""

import ctypes
import mmap
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.linux.memfd import SealableFile
from ramet.vmm.port import Ballooned, SizeOutOfRange, VmmUnsupported
from ramet.vmm.private_mapping import covers, find_regions
from tests.vmm.cloud_hypervisor_bench import CloudHypervisorBench
from tests.vmm.fake_rest_bench import FakeRestBench
from tests.vmm.firecracker_bench import FirecrackerBench

MIB = 1 << 20


@pytest.fixture(params=[FirecrackerBench, CloudHypervisorBench])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[FakeRestBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-vm-"))
    bench: FakeRestBench = request.param(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.mark.anyio
async def test_a_guest_is_asked_to_give_memory_back_and_has_it_again(bench: FakeRestBench) -> None:
    source = await bench.boot()
    assert isinstance(source, Ballooned)
    assert await source.balloon_bytes() == 0
    await source.set_balloon(3 * MIB - 1)
    assert await source.balloon_bytes() == 2 * MIB
    for wrong in (-MIB, bench.memory_bytes):
        with pytest.raises(SizeOutOfRange):
            await source.set_balloon(wrong)
    assert await source.balloon_bytes() == 2 * MIB
    await source.set_balloon(0)
    assert await source.balloon_bytes() == 0


@pytest.mark.anyio
@pytest.mark.parametrize("bench", [FirecrackerBench], indirect=True)
@pytest.mark.parametrize(("plug_bytes", "vcpu_count_max"), [(128 * MIB, None), (0, 2)])
async def test_room_for_more_is_refused_where_nothing_can_be_plugged_in(
    bench: FakeRestBench, plug_bytes: int, vcpu_count_max: int | None
) -> None:
    machine = bench.machine(bench.layers.create(bench.overlay_bytes))
    with pytest.raises(VmmUnsupported, match="that it boots with"):
        await bench.driver.boot(replace(machine, plug_bytes=plug_bytes, vcpu_count_max=vcpu_count_max))
    assert await bench.driver.find() == {}


def test_a_file_with_a_piece_of_its_mapping_replaced_is_not_covered() -> None:
    file = SealableFile("ramet-memory", 3 * MIB)
    mapped = mmap.mmap(file.fd, 3 * MIB, flags=mmap.MAP_PRIVATE)
    assert covers(find_regions(os.getpid(), file.fd), 3 * MIB)
    assert not covers(find_regions(os.getpid(), file.fd), 4 * MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
    assert libc.mmap(address + MIB, MIB, mmap.PROT_READ | mmap.PROT_WRITE, fixed, -1, 0) == address + MIB
    regions = find_regions(os.getpid(), file.fd)
    assert sum(region.length_bytes for region in regions) == 2 * MIB
    assert not covers(regions, 3 * MIB)
    file.close()
