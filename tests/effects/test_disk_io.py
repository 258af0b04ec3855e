"""What an instance's disks let through: from its boot, and after whatever it goes through."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.admission.demand import Resource
from ramet.admission.ledger import InsufficientResources, Limit
from ramet.vmm.cloud_hypervisor.vm import CloudHypervisorVm
from ramet.vmm.fake.driver import FakeVm
from ramet.vmm.token_bucket import disk_bucket_of
from tests.effects.rest_world import CloudHypervisorWorld
from tests.effects.world import Daemon, World, new_folder

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

RATE_BYTES_PER_S = 50_000_000


@pytest.fixture
async def able(images: Path) -> AsyncIterator[CloudHypervisorWorld]:
    world = CloudHypervisorWorld(new_folder(), images)
    yield world
    await world.aclose()


async def told(daemon: Daemon, name: str) -> object:
    """Return what the VMM of an instance says of its limit, alike for all that have this one."""
    vm = daemon.site.rigs[daemon.fleet.get(name).record.id].vm
    if isinstance(vm, FakeVm):
        return (await vm._do("query"))["disk_io_bytes_per_s"]
    assert isinstance(vm, CloudHypervisorVm)
    disks = (await vm._api.get("/api/v1/vm.info"))["config"]["disks"]  # type: ignore[index]
    limits = [disk.get("rate_limiter_config") for disk in disks]
    asked = [{"bandwidth": disk_bucket_of(RATE_BYTES_PER_S)}] * len(disks)
    return RATE_BYTES_PER_S if limits == asked else limits


async def goes_through_everything(daemon: Daemon) -> None:
    spec = replace(daemon.spec, disk_io_bytes_per_s=RATE_BYTES_PER_S)
    await daemon.fleet.create("src", spec)
    assert await told(daemon, "src") == RATE_BYTES_PER_S
    (outcome,) = await daemon.fleet.fork("src", ["child"])
    assert outcome.error is None
    for name in ("src", "child"):
        assert await told(daemon, name) == RATE_BYTES_PER_S
    await daemon.fleet.standby("src")
    await daemon.fleet.restore("src")
    assert await told(daemon, "src") == RATE_BYTES_PER_S
    await daemon.fleet.stop("src")
    await daemon.fleet.start("src")
    assert await told(daemon, "src") == RATE_BYTES_PER_S


async def test_it_holds_from_the_boot_in_a_fork_after_a_wake_and_after_a_start(world: World) -> None:
    async with world.daemon() as daemon:
        await goes_through_everything(daemon)


async def test_it_holds_with_a_vmm_that_loads_its_limits(able: CloudHypervisorWorld) -> None:
    async with able.daemon() as daemon:
        await goes_through_everything(daemon)


async def test_a_rate_is_reserved_while_it_runs_and_one_too_many_is_refused(world: World) -> None:
    async with world.daemon() as daemon:
        ledger = daemon.site.admission.ledger
        ledger.limit(Limit(Resource.DISK_IO, 2 * RATE_BYTES_PER_S))
        spec = replace(daemon.spec, disk_io_bytes_per_s=RATE_BYTES_PER_S)
        await daemon.fleet.create("src", spec)
        outcomes = await daemon.fleet.fork("src", ["one", "two"])
        (refused,) = [each.error for each in outcomes if each.error is not None]
        assert isinstance(refused, InsufficientResources)
        assert refused.fields["resource"] == "disk_io"
        await daemon.fleet.stop("src")
        assert ledger.total_of(Resource.DISK_IO) == RATE_BYTES_PER_S
