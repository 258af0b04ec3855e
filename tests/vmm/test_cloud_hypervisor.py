"""The Cloud Hypervisor driver keeps the contract of the port, on a strict fake of Cloud Hypervisor."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.vmm.bench import LiveVm
from tests.vmm.cloud_hypervisor_bench import CloudHypervisorBench
from tests.vmm.contract import ForkContract

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["51.0", "53.0"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[CloudHypervisorBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-ch-"))
    bench = CloudHypervisorBench(folder, request.param)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: CloudHypervisorBench) -> LiveVm:
    return await bench.boot()


class TestCloudHypervisor(ForkContract):
    """The contract."""
