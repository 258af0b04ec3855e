"""What a Cloud Hypervisor that refuses or dies at any call leaves behind: a capture to try again."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramet.vmm.port import VmmFailed
from tests.vmm.bench import digest
from tests.vmm.cloud_hypervisor_bench import CloudHypervisorBench
from tests.vmm.fake_firecracker.faults import Kind, arm, is_taken

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def bench() -> AsyncIterator[CloudHypervisorBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-ch-"))
    bench = CloudHypervisorBench(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.mark.parametrize("call", ["GET vmm.ping", "PUT vm.create", "PUT vm.boot"])
@pytest.mark.parametrize("kind", ["fail", "die"])
async def test_a_boot_that_fails_leaves_no_process(
    bench: CloudHypervisorBench, call: str, kind: Kind
) -> None:
    before = await bench.driver.find()
    arm(bench.faults, kind, call)
    with pytest.raises(VmmFailed):
        await bench.boot()
    assert is_taken(bench.faults, kind, call)
    assert await bench.driver.find() == before


@pytest.mark.parametrize("call", ["PUT vm.restore", "PUT vm.resume"])
@pytest.mark.parametrize("kind", ["fail", "die", "late-die"])
async def test_a_load_that_fails_leaves_the_capture_for_another_try(
    bench: CloudHypervisorBench, call: str, kind: Kind
) -> None:
    source = await bench.boot()
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    before = digest(capture.memory), digest(capture.devices)
    child = await bench.start_waiting(capture, frozen)
    arm(bench.faults, kind, call)
    with pytest.raises(VmmFailed, match="did not load"):
        await child.load(capture)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    bench.vms.remove(child)
    assert (digest(capture.memory), digest(capture.devices)) == before
    sibling = await bench.child(capture, frozen)
    capture.close()
    for vm in (sibling, source):
        await bench.end(vm)
