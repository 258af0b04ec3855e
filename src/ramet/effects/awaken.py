"""Waking a guest from a capture: its VMM is started, loads it, and the guest is told who it is.

It is itself when it has acknowledged its identity; its workload stands still until then.
"""

from contextlib import AsyncExitStack
from typing import Final

import structlog

from ramet.core.ids import LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.machine import guest_identity, make_machine
from ramet.effects.site import Rig, Site
from ramet.guest.identity import identify_child
from ramet.net.taps import Tap
from ramet.telemetry.timings import phase, staged
from ramet.vmm.port import Capture, LiveFork, LiveForkUnsupported, Restored

IDENTIFY_TIMEOUT_S: Final = 60.0

log = structlog.get_logger(__name__)


def waking_driver(site: Site, record: InstanceRecord) -> LiveFork:
    """Return the driver of an instance, if it can start it from a capture.

    Raises:
        LiveForkUnsupported: it cannot.
        HypervisorUnavailable: this host has it no more.
    """
    driver = site.driver_of(record)
    if not isinstance(driver, LiveFork):
        raise LiveForkUnsupported(
            f"{driver.name} cannot start an instance from its memory", remedy="use hypervisor qemu"
        )
    return driver


async def awaken(
    site: Site,
    record: InstanceRecord,
    layer: LayerId,
    capture: Capture,
    tap: Tap | None,
    *,
    until_started: AsyncExitStack,
) -> Rig:
    """Start the VMM of `record` from `capture` on the disk of `layer`, and make its guest itself.

    If it fails, what was started is among the site's rigs, for the caller to end.

    Args:
        until_started: what is to be let go of as soon as the VMM runs.

    Raises:
        RametError: it did not work.
    """
    driver = waking_driver(site, record)
    machine = make_machine(site, record, layer, tap)
    async with staged("vmm_start", site.stages.vmm_start()):
        vm = await driver.start_waiting(machine, capture)
    rig = site.rigs[record.id] = Rig(record.id, vm, layer)
    await until_started.aclose()
    await awaken_waiting(site, record, rig, vm, capture)
    return rig


async def awaken_waiting(
    site: Site, record: InstanceRecord, rig: Rig, vm: Restored, capture: Capture
) -> None:
    """Load `capture` into a VMM that waits for it, and make its guest itself.

    Raises:
        RametError: it did not work.
    """
    async with staged("confirm", site.stages.confirm()):
        with phase("load"):
            await vm.load(capture)
        with phase("identify"), vm.unless_starved():
            channel, answer = await identify_child(
                vm.agent_socket, guest_identity(site, record), timeout_s=IDENTIFY_TIMEOUT_S
            )
    rig.use(channel)
    await vm.note_ready()
    # After a repeated hello the answer speaks of a child that the first one had made itself already.
    if answer.ran_before_identity and channel.hello_count == 1:
        log.warning("child_ran_before_identity", instance=record.id)
