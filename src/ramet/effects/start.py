"""Booting an instance again from the disk it has.

Nothing of the run before is in the way any more, and nothing that was there before is ever taken away: a
start that fails ends the VMM and the TAP, which are all it made.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
from anyio import to_thread

from ramet.core.ids import LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.boot import attached
from ramet.effects.end import end_unheld, release
from ramet.effects.folder import prepare_folder_again
from ramet.effects.machine import make_machine
from ramet.effects.site import Rig, Site
from ramet.telemetry.timings import phase, staged


async def start(
    site: Site, record: InstanceRecord, top_layer: Callable[[], LayerId | None]
) -> tuple[Rig, LayerId]:
    """Start a VMM on the disk of an instance that has none; its guest is not awaited.

    Args:
        top_layer: tells the top of its disk, once nobody can put another on it any more.

    Raises:
        RametError: it did not work; disk, folder and endpoint are as before.
    """
    with phase("clear"):
        await end_unheld(site, record)  # A start before this one may have failed, and its undoing too.
        await release(site, record)  # What a VMM that just ended still held.
    layer = top_layer()
    assert layer is not None, "an instance that was made has a disk"
    async with ended_on_failure(site, record):
        with phase("folder"):
            await to_thread.run_sync(prepare_folder_again, site, record)
        async with attached(site, record) as tap:
            machine = make_machine(site, record, layer, tap)
            async with staged("vmm_start", site.stages.vmm_start()):
                vm = await site.driver_of(record).boot(machine)
        rig = site.rigs[record.id] = Rig(record.id, vm, layer)
        return rig, layer


@asynccontextmanager
async def ended_on_failure(site: Site, record: InstanceRecord) -> AsyncIterator[None]:
    """If the inside fails or is cancelled, end what runs of the instance and keep all that lies on disk."""
    try:
        yield
    except BaseException:
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as undo:
                if record.identity.slot is not None:
                    undo.push_async_callback(site.network.detach, record.id)
                rig = site.rigs.pop(record.id, None)
                if rig is not None:
                    undo.push_async_callback(rig.vm.kill)
                    undo.push_async_callback(rig.close)
        raise
