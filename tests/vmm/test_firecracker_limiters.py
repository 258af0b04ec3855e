"""Limits of a network card, and the files that Firecracker writes."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.core.spec import DISK_IO_BYTES_PER_S_MAX, DISK_IO_BYTES_PER_S_MIN
from ramet.vmm.firecracker.limiters import disk_limiter_of, limiters_of
from ramet.vmm.firecracker.vm import FirecrackerVm
from ramet.vmm.port import Nic, NicLimits
from ramet.vmm.token_bucket import REFILL_MS
from tests.vmm.firecracker_bench import FirecrackerBench

LARGEST_REQUEST_BYTES = 4 << 20
"""Of a Linux guest: larger ones would come at up to twice the rate."""
LOOPBACK = Nic("02:00:00:00:00:07", -1, "lo", NicLimits(5_000_000, 1_000_000))


@given(st.integers(1, 10**11))
def test_a_bucket_has_the_rate_and_is_not_empty_for_long(rate_bytes_per_s: int) -> None:
    limiters: Any = limiters_of(NicLimits(rate_bytes_per_s))
    bucket = limiters["rx_rate_limiter"]["bandwidth"]
    assert bucket["size"] * 1000 / bucket["refill_time"] == pytest.approx(rate_bytes_per_s, rel=0.01)
    assert bucket["refill_time"] >= REFILL_MS - 1
    assert limiters["tx_rate_limiter"]["bandwidth"] == {"size": 0, "refill_time": 0}


@given(st.integers(DISK_IO_BYTES_PER_S_MIN, DISK_IO_BYTES_PER_S_MAX))
def test_a_disks_bucket_has_the_rate_and_holds_the_largest_request(rate_bytes_per_s: int) -> None:
    limiter: Any = disk_limiter_of(rate_bytes_per_s)
    bucket = limiter["rate_limiter"]["bandwidth"]
    assert bucket["size"] * 1000 / bucket["refill_time"] == pytest.approx(rate_bytes_per_s, rel=0.01)
    assert bucket["size"] >= LARGEST_REQUEST_BYTES


@pytest.fixture
async def bench() -> AsyncIterator[FirecrackerBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    bench = FirecrackerBench(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


async def told(vm: Any) -> dict[str, Any]:
    assert isinstance(vm, FirecrackerVm)
    config: Any = await vm._api.get("/vm/config")
    return dict(config["network-interfaces"][0])


@pytest.mark.anyio
async def test_a_child_has_limits_of_its_own(bench: FirecrackerBench) -> None:
    layer = bench.layers.create(bench.overlay_bytes)
    source = bench.keep(await bench.driver.boot(replace(bench.machine(layer), nic=LOOPBACK)), layer)
    wanted: Any = LOOPBACK.limits
    assert limiters_of(wanted).items() <= (await told(source)).items()
    capture = await bench.capture(source)
    other = NicLimits(None, 7_000_000)
    for limits, expected in ((other, other), (None, wanted)):
        below = bench.layers.create_on(layer, bench.overlay_bytes)
        machine = replace(bench.machine(below), nic=replace(LOOPBACK, limits=limits))
        child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
        await child.load(capture)
        assert limiters_of(expected).items() <= (await told(child)).items()
    capture.close()


@pytest.mark.anyio
async def test_metrics_and_log_may_be_cut_short_while_they_are_written(bench: FirecrackerBench) -> None:
    vm = await bench.boot()
    assert isinstance(vm, FirecrackerVm)
    for name in ("metrics.json", "vmm.log"):
        file = vm.agent_socket.parent / name
        for _ in range(2):
            os.truncate(file, 0)
            await vm._api.put("/actions", {"action_type": "FlushMetrics"})
            assert 0 < file.stat().st_size < 4096
            assert not file.read_bytes().startswith(b"\0")
