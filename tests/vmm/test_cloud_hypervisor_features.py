"""What Cloud Hypervisor's driver does beyond the contract, on a strict fake."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ramet.core.ids import LayerId
from ramet.linux.memfd import SealableFile
from ramet.vmm.cloud_hypervisor.vm import CloudHypervisorVm
from ramet.vmm.port import (
    MEMORY_FILE_NAME,
    Ballooned,
    BalloonUnsupported,
    Capture,
    Machine,
    Nic,
    NicLimits,
    Resizable,
    SizeOutOfRange,
    Sizes,
    VmmFailed,
    VmmUnsupported,
)
from ramet.vmm.token_bucket import bucket_of
from tests.vmm.bench import LiveVm, digest
from tests.vmm.cloud_hypervisor_bench import CloudHypervisorBench

pytestmark = pytest.mark.anyio

RATE_BYTES_PER_S = 5_000_000
LOOPBACK = Nic("02:00:00:00:00:07", -1, "lo", NicLimits(RATE_BYTES_PER_S, RATE_BYTES_PER_S))


@pytest.fixture
async def bench() -> AsyncIterator[CloudHypervisorBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-ch-"))
    bench = CloudHypervisorBench(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


async def boot(bench: CloudHypervisorBench, **different: Any) -> tuple[LiveVm, LayerId]:
    layer = bench.layers.create(bench.overlay_bytes)
    machine = replace(bench.machine(layer), **different)
    return bench.keep(await bench.driver.boot(machine), layer), layer


def child_of(bench: CloudHypervisorBench, frozen: LayerId, **different: Any) -> tuple[Machine, LayerId]:
    layer = bench.layers.create_on(frozen, bench.overlay_bytes)
    return replace(bench.machine(layer), **different), layer


async def told(vm: LiveVm) -> dict[str, Any]:
    """Return the configuration that a VMM says it has."""
    assert isinstance(vm, CloudHypervisorVm)
    info: Any = await vm._api.get("/api/v1/vm.info")
    return dict(info["config"])


# Limits of a network card


@pytest.mark.parametrize(
    ("of_child", "expected"),
    [
        (None, RATE_BYTES_PER_S),
        (NicLimits(7_000_000, 7_000_000), 7_000_000),
        (NicLimits(), None),
    ],
)
async def test_a_child_has_limits_of_its_own_or_its_sources(
    bench: CloudHypervisorBench, of_child: NicLimits | None, expected: int | None
) -> None:
    source, layer = await boot(bench, nic=LOOPBACK)
    (card,) = (await told(source))["net"]
    assert card["rate_limiter_config"] == {"bandwidth": bucket_of(RATE_BYTES_PER_S)}
    capture = await bench.capture(source)
    machine, below = child_of(bench, layer, nic=replace(LOOPBACK, limits=of_child))
    child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
    await child.load(capture)
    (card,) = (await told(child))["net"]
    assert card.get("rate_limiter_config") == (expected and {"bandwidth": bucket_of(expected)})
    capture.close()


async def test_limits_that_differ_by_direction_are_refused(bench: CloudHypervisorBench) -> None:
    with pytest.raises(VmmUnsupported, match="one limit for both"):
        await boot(bench, nic=replace(LOOPBACK, limits=NicLimits(RATE_BYTES_PER_S)))
    assert await bench.driver.find() == {}


# The disk


async def test_a_disk_that_cannot_be_switched_keeps_its_name(bench: CloudHypervisorBench) -> None:
    source, layer = await boot(bench)
    await bench.run(source, bench.store("before", "yes"))
    old_top = bench.layers.path(layer)
    new_top = bench.layers.path(bench.layers.create_on(layer, bench.overlay_bytes))
    in_the_way = source.agent_socket.parent / "overlay.part"
    in_the_way.mkdir()
    await source.prepare_disk(new_top)
    async with source.paused():
        with pytest.raises(VmmFailed):
            await source.switch_disk(new_top)
    await source.forget_disk(new_top)
    assert await source.top_layer() == old_top
    in_the_way.rmdir()
    child = await bench.fork(source)
    assert await bench.run(child, bench.fetch("before")) == "yes"


# Its size

ROOM = {"plug_bytes": 128 << 20, "vcpu_count_max": 4}
MIB = 1 << 20


async def test_a_vm_is_given_processors_and_memory_and_has_them_taken_away(
    bench: CloudHypervisorBench,
) -> None:
    source, _ = await boot(bench, **ROOM)
    assert isinstance(source, Resizable)
    booted = bench.memory_bytes
    assert await source.sizes() == Sizes(1, 4, booted, booted, booted + ROOM["plug_bytes"], 2 * MIB)
    await source.resize(3, booted + 6 * MIB)
    assert await source.sizes() == Sizes(3, 4, booted + 6 * MIB, booted, booted + ROOM["plug_bytes"], 2 * MIB)
    await source.resize(3, booted + 6 * MIB)  # As it is: the VMM would refuse it.
    await source.resize(memory_bytes=booted)
    assert (await source.sizes()).memory_bytes == booted
    await source.resize(vcpu_count=1)
    assert (await source.sizes()).vcpu_count == 1


@pytest.mark.parametrize(
    ("vcpu_count", "more_bytes"),
    [(0, None), (5, None), (2, -2 * MIB), (2, 130 * MIB), (2, MIB), (5, 2 * MIB)],
)
async def test_a_size_out_of_range_is_refused_and_nothing_is_changed(
    bench: CloudHypervisorBench, vcpu_count: int, more_bytes: int | None
) -> None:
    source, _ = await boot(bench, **ROOM)
    assert isinstance(source, Resizable)
    before = await source.sizes()
    with pytest.raises(SizeOutOfRange):
        await source.resize(vcpu_count, None if more_bytes is None else bench.memory_bytes + more_bytes)
    assert await source.sizes() == before


@pytest.mark.parametrize("room", [{"plug_bytes": 64 * MIB}, {"vcpu_count_max": 0}, {"vcpu_count_max": 999}])
async def test_room_that_cannot_be_is_refused(bench: CloudHypervisorBench, room: dict[str, int]) -> None:
    with pytest.raises(VmmUnsupported):
        await boot(bench, **room)
    assert await bench.driver.find() == {}


async def test_a_child_has_the_size_its_source_had_and_memory_of_its_own(bench: CloudHypervisorBench) -> None:
    source, layer = await boot(bench, **ROOM)
    assert isinstance(source, Resizable)
    await bench.run(source, bench.remember("before", "yes"))
    await source.resize(2, bench.memory_bytes + 4 * MIB)
    capture = await bench.capture(source, room_for(bench))
    await source.resize(1, bench.memory_bytes)
    machine, below = child_of(bench, layer, **ROOM)
    child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
    await bench.wake(child, capture, "child")
    assert isinstance(child, Resizable)
    sizes = await child.sizes()
    assert (sizes.vcpu_count, sizes.memory_bytes) == (2, bench.memory_bytes + 4 * MIB)
    assert await bench.run(child, bench.recall("before")) == "yes"
    # What no file is mapped for is no difference to a file: the whole is stored, and loads.
    assert isinstance(capture.memory, SealableFile)
    second = await bench.capture(child, room_for(bench, base=capture.memory))
    assert second.changes is None
    machine, lowest = child_of(bench, below, **ROOM)
    grandchild = bench.keep(await bench.driver.start_waiting(machine, second), lowest)
    await bench.wake(grandchild, second, "grandchild")
    assert await bench.run(grandchild, bench.recall("before")) == "yes"
    # And of a guest that has given it all back, whose base has it.
    await child.resize(memory_bytes=bench.memory_bytes)
    third = await bench.capture(child, room_for(bench, base=capture.memory))
    assert third.changes is None
    third.memory.close()
    third.devices.close()
    second.close()


async def test_a_child_without_the_room_of_its_source_does_not_load(bench: CloudHypervisorBench) -> None:
    source, layer = await boot(bench, **ROOM)
    capture = await bench.capture(source, room_for(bench))
    machine, below = child_of(bench, layer)
    child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
    with pytest.raises(VmmFailed, match="room"):
        await child.load(capture)
    capture.close()


async def test_a_child_takes_no_memory_back_nor_what_its_source_was_asked_for(
    bench: CloudHypervisorBench,
) -> None:
    source, layer = await boot(bench)
    assert isinstance(source, Ballooned)
    await source.set_balloon(bench.memory_bytes - MIB)  # More than it can spare.
    capture = await bench.capture(source)
    before = digest(capture.memory)
    machine, below = child_of(bench, layer)
    child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
    await child.load(capture)
    assert isinstance(child, Ballooned)
    had = await child.balloon_bytes()
    assert had == bench.memory_bytes // 2
    for more in (had + MIB, MIB):  # It may have less by now: a guest that runs out of memory takes it again.
        with pytest.raises(BalloonUnsupported):
            await child.set_balloon(more)
    await child.set_balloon(0)
    assert await child.balloon_bytes() == 0
    assert digest(capture.memory) == before
    capture.close()


def room_for(bench: CloudHypervisorBench, base: SealableFile | None = None) -> Capture:
    memory = SealableFile(MEMORY_FILE_NAME, bench.memory_bytes + ROOM["plug_bytes"])
    return Capture(memory, SealableFile("ramet-devices"), base=base)
