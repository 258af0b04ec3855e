"""What Cloud Hypervisor's driver does beyond the contract, on a strict fake."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ramet.core.ids import LayerId
from ramet.vmm.cloud_hypervisor.vm import CloudHypervisorVm
from ramet.vmm.port import Machine, Nic, NicLimits, VmmFailed, VmmUnsupported
from ramet.vmm.token_bucket import bucket_of
from tests.vmm.bench import LiveVm
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
