"""The Firecracker driver keeps the contract of the port, on a strict fake of Firecracker."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramet.vmm.jail import JailMode
from tests.vmm.bench import LiveVm
from tests.vmm.contract import ForkContract
from tests.vmm.firecracker_bench import FirecrackerBench

pytestmark = pytest.mark.anyio


KINDS = [("1.10.1", JailMode.OFF), ("1.16.1", JailMode.OFF)]
if os.geteuid() == 0:
    KINDS.append(("1.16.1", JailMode.ON))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-jail-{kind[1]}")
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[FirecrackerBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    version, jail = request.param
    bench = FirecrackerBench(folder, version, jail=jail)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: FirecrackerBench) -> LiveVm:
    return await bench.boot()


class TestFirecracker(ForkContract):
    """The contract."""
