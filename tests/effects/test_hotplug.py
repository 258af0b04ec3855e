"""Memory that comes to a guest once it has booted: it has it, and so have its fork and who wakes."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.core.errors import RametError
from ramet.core.spec import HOTPLUG_STEP_BYTES, State
from ramet.vmm.port import Resizable
from tests.effects.rest_world import CloudHypervisorWorld
from tests.effects.world import Daemon, World, new_folder

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

TIMEOUT_S = 30.0


@pytest.fixture
async def able(images: Path) -> AsyncIterator[CloudHypervisorWorld]:
    world = CloudHypervisorWorld(new_folder(), images)
    yield world
    await world.aclose()


async def memory_bytes(daemon: Daemon, name: str) -> int:
    vm = daemon.site.rigs[daemon.fleet.get(name).record.id].vm
    assert isinstance(vm, Resizable)
    return (await vm.sizes()).memory_bytes


async def test_a_guest_has_the_memory_that_was_to_come_and_so_has_its_fork(
    able: CloudHypervisorWorld,
) -> None:
    async with able.daemon() as daemon:
        spec = replace(daemon.spec, hotplug_bytes=HOTPLUG_STEP_BYTES)
        all_of_it = spec.memory_bytes + HOTPLUG_STEP_BYTES
        before = daemon.site.admission.ledger.held
        record = (await daemon.fleet.create("src", spec)).record
        assert before(record.id).memory_bytes == all_of_it
        assert await memory_bytes(daemon, "src") == all_of_it
        await daemon.run("src", "set", "warm", "memory")
        (outcome,) = await daemon.fleet.fork("src", ["child"])
        assert outcome.error is None
        assert await memory_bytes(daemon, "child") == all_of_it
        assert await daemon.run("child", "get", "warm") == "memory"
        await daemon.fleet.standby("src")
        await daemon.fleet.restore("src")
        assert await memory_bytes(daemon, "src") == all_of_it
        assert await daemon.run("src", "get", "warm") == "memory"


async def test_a_guest_that_does_not_come_to_have_it_runs_without(able: CloudHypervisorWorld) -> None:
    async with able.daemon() as daemon:
        able.fail("PUT vm.resize-zone")
        spec = replace(daemon.spec, hotplug_bytes=HOTPLUG_STEP_BYTES)
        assert (await daemon.fleet.create("src", spec)).record.state is State.RUNNING
        assert await memory_bytes(daemon, "src") == spec.memory_bytes


async def test_a_hypervisor_that_plugs_nothing_in_refuses_and_leaves_nothing(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        with pytest.raises(RametError):
            await daemon.fleet.create("src", replace(daemon.spec, hotplug_bytes=HOTPLUG_STEP_BYTES))
        assert world.leftovers() == before
