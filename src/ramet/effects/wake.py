"""Waking an instance from its stored memory.

It runs on a new disk layer over the one it fell asleep on. So until it is awake, and a record says so, both
memory and disk are as they were, and a wake that fails or is cut short can be tried again.
"""

from contextlib import AsyncExitStack

from anyio import to_thread

from ramet.core.ids import CaptureId, LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.awaken import awaken, awaken_waiting, waking_driver
from ramet.effects.berth import Berth, leave_berth
from ramet.effects.boot import attached
from ramet.effects.end import end_unheld, release
from ramet.effects.folder import BASE_FILE, prepare_folder_again
from ramet.effects.site import Rig, Site
from ramet.effects.start import ended_on_failure
from ramet.telemetry.timings import phase


async def wake(site: Site, record: InstanceRecord, berth: Berth | None = None) -> tuple[Rig, LayerId]:
    """Have a sleeping instance run again, as itself; in `berth`, where its VMM waits, if there is one.

    Raises:
        RametError: it did not work; it sleeps, as before.
    """
    assert record.capture is not None, "it sleeps"
    assert record.layer is not None, "what sleeps has a disk"
    driver = waking_driver(site, record)
    if berth is not None:
        # It never ran: its own layer is as empty as the one of the berth, over the same.
        if record.capture == berth.stored and site.layers.is_directly_on(record.layer, berth.below):
            return await _wake_waiting(site, record, record.capture, berth)
        await leave_berth(site, record, berth)
    with phase("clear"):
        await end_unheld(site, record)  # A VMM may have outlived the failure of its end.
        await release(site, record)
    async with site.captures.opened(record.capture, may_be_packed=driver.takes_packed) as capture:
        layer = site.layers.create_on(record.layer, record.spec.disk_bytes)
        try:
            async with ended_on_failure(site, record), AsyncExitStack() as until_started:
                with phase("folder"):
                    await to_thread.run_sync(prepare_folder_again, site, record)
                tap = await until_started.enter_async_context(attached(site, record))
                rig = await awaken(site, record, layer, capture, tap, until_started=until_started)
                with phase("deliver"):
                    await site.network.deliver(record.id)
                _keep_base(site, record)
        except BaseException:
            site.layers.release(layer)
            raise
    return rig, layer


def _keep_base(site: Site, record: InstanceRecord) -> None:
    """Have the memory file outlive the capture: the next sleep stores only what differs from it."""
    assert record.capture is not None, "it has woken from one"
    site.captures.link_memory(record.capture, site.instance_folder(record.id) / BASE_FILE)


async def _wake_waiting(
    site: Site, record: InstanceRecord, stored: CaptureId, berth: Berth
) -> tuple[Rig, LayerId]:
    assert berth.vm is not None, "it waits"
    assert berth.layer is not None, "it waits on a disk"
    rig = site.rigs[record.id] = Rig(record.id, berth.vm, berth.layer)
    try:
        packed = waking_driver(site, record).takes_packed
        async with (
            ended_on_failure(site, record),
            site.captures.opened(stored, may_be_packed=packed) as capture,
        ):
            await awaken_waiting(site, record, rig, berth.vm, capture)
            _keep_base(site, record)
    except BaseException:
        site.layers.release(rig.layer)
        raise
    return rig, rig.layer
