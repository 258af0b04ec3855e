"""The Cloud Hypervisor driver keeps the contract of the port, on a strict fake of Cloud Hypervisor."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramet.vmm.jail import JailMode
from tests.vmm.bench import LiveVm
from tests.vmm.cloud_hypervisor_bench import CloudHypervisorBench
from tests.vmm.contract import ForkContract

pytestmark = pytest.mark.anyio


KINDS = [("51.0", JailMode.OFF), ("53.0", JailMode.OFF)]
if os.geteuid() == 0:
    KINDS.append(("53.0", JailMode.ON))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-jail-{kind[1]}")
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[CloudHypervisorBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-ch-"))
    version, jail = request.param
    bench = CloudHypervisorBench(folder, version, jail)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: CloudHypervisorBench) -> LiveVm:
    return await bench.boot()


class TestCloudHypervisor(ForkContract):
    """The contract."""
