"""The same life on QEMU's other board: boot, commands, forks, stop and start."""

from dataclasses import replace

import pytest

from ramet.core.spec import State
from ramet.vmm.qemu.board import MICROVM
from tests.vm.site import Children, Site, vmm_pids

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.fixture
async def microvm(site: Site, children: Children) -> str:
    """Return the name of an instance on that board, which goes with the test."""
    children.names.append("small")
    spec = replace(site.spec(), hypervisor=MICROVM.name)
    view = await site.fleet.create("small", spec)
    assert view.record.state is State.RUNNING, view.record.state_error
    return "small"


async def test_a_microvm_is_forked_twice_stopped_and_started(
    site: Site, source: str, children: Children, microvm: str
) -> None:
    await site.sh(microvm, "echo warm >/dev/shm/state; echo kept >/var/state; sync")
    await children.fork(microvm, "small-a", "small-b")
    await children.fork("small-a", "small-c")
    for name in ("small-a", "small-b", "small-c"):
        assert await site.sh(name, "cat /dev/shm/state /var/state; hostname") == f"warm\nkept\n{name}\n"
        assert site.fleet.get(name).record.spec.hypervisor == MICROVM.name
        assert (await site.get_state(name))["hostname"] == name
    assert (await site.fleet.stop(microvm)).record.state is State.STOPPED
    assert (await site.fleet.start(microvm)).record.state is State.RUNNING
    assert await site.sh(microvm, "cat /var/state; test ! -e /dev/shm/state") == "kept\n"
    assert (await site.run(source, "true")).exit_code == 0


async def test_it_has_no_pci_and_every_device_of_an_instance(site: Site, microvm: str) -> None:
    found = await site.sh(
        microvm,
        "ls /sys/bus/virtio/drivers/*/ | grep -c ^virtio; ls /sys/bus/pci/devices 2>/dev/null | wc -l",
    )
    assert found.split() == ["7", "0"]


async def test_its_clock_is_finer_than_its_tick(site: Site, microvm: str) -> None:
    found = await site.sh(microvm, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    assert found in {"tsc\n", "kvm-clock\n"}


async def test_each_driver_finds_its_own_vms_alone(site: Site, source: str, microvm: str) -> None:
    drivers = site.effects.drivers
    found = {name: set(await driver.find()) for name, driver in drivers.items()}
    assert site.id_of(microvm) in found[MICROVM.name] - found["qemu"]
    assert site.id_of(source) in found["qemu"] - found[MICROVM.name]
    assert len(vmm_pids(site.folder)) == sum(map(len, found.values()))
    runtime = site.rig(microvm).vm.runtime
    assert (await drivers[MICROVM.name].find())[site.id_of(microvm)] == runtime
