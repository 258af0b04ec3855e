"""The Firecracker driver keeps the contract of the port, on a strict fake of Firecracker."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.vmm.bench import LiveVm
from tests.vmm.contract import ForkContract
from tests.vmm.firecracker_bench import FirecrackerBench

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["1.10.1", "1.16.1"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[FirecrackerBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    bench = FirecrackerBench(folder, request.param)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: FirecrackerBench) -> LiveVm:
    return await bench.boot()


class TestFirecracker(ForkContract):
    """The contract."""
