"""Forking a running instance.

What of a child does not depend on the capture (its endpoint's admission, its TAP, its folder) is made while
the capture is being taken. The child is itself, and Running, when its guest has acknowledged its new
identity; its workload stands still until then.
"""

import time
from contextlib import AsyncExitStack
from typing import Final

import structlog

from ramet.core.errors import Unsupported
from ramet.core.ids import InstanceId, LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.boot import attached, undone_on_failure
from ramet.effects.folder import prepare_folder
from ramet.effects.machine import guest_identity, make_machine
from ramet.effects.site import Rig, Site
from ramet.guest.identity import identify_child
from ramet.snapshots.flight import Flights
from ramet.telemetry.timings import Timings, staged
from ramet.vmm.port import LiveFork

log = structlog.get_logger(__name__)

IDENTIFY_TIMEOUT_S: Final = 60.0


class LiveForkUnsupported(Unsupported):
    """This VMM cannot be forked while it runs."""

    code = "live_fork_unsupported"


async def fork(
    site: Site, flights: Flights, record: InstanceRecord, source: InstanceId, timings: Timings
) -> tuple[Rig, LayerId]:
    """Make `record` a running child of `source`.

    Raises:
        RametError: it did not work, and nothing of it is left but the reserved endpoint.
    """
    driver = site.driver_of(record)
    if not isinstance(driver, LiveFork):
        raise LiveForkUnsupported(
            f"{driver.name} cannot fork a running instance", remedy="use hypervisor qemu"
        )
    async with (
        flights.board(source) as flight,
        undone_on_failure(site, record) as made,
        AsyncExitStack() as until_started,
    ):
        with timings.phase("folder"):
            prepare_folder(site, record)
        tap_fd = await until_started.enter_async_context(attached(site, record))
        with timings.phase("capture", "wait"):
            taken = await flight.wait_landed()
        site.admission.captures.map(record.id, taken.new_top)
        timings.note("source_pause", taken.pause_s)
        with timings.phase("disk"):
            layer = made.layer = site.layers.create_on(taken.frozen, record.spec.overlay_bytes)
        machine = make_machine(site, record, layer, tap_fd)
        async with staged("vmm_start", site.stages.vmm_start):
            vm = await driver.start_waiting(machine, taken.capture)
        rig = site.rigs[record.id] = Rig(record.id, vm, layer)
        await until_started.aclose()
        async with staged("confirm", site.stages.confirm):
            with timings.phase("load"):
                await vm.load(taken.capture)
            with timings.phase("identify"):
                identity = guest_identity(site, record)
                with vm.unless_starved():
                    channel, answer = await identify_child(
                        vm.agent_socket, identity, timeout_s=IDENTIFY_TIMEOUT_S
                    )
        rig.use(channel)
        timings.note("since_capture", time.perf_counter() - flight.landed_at)
        # After a repeated hello the answer speaks of a child that the first one had made itself already.
        if answer.ran_before_identity and channel.hello_count == 1:
            log.warning("child_ran_before_identity", instance=record.id)
        return rig, layer
