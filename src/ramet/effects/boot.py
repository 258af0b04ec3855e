"""Booting an instance: folder, disk, endpoint, VMM, in this order, and back if any of it fails."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio import to_thread

from ramet.core.ids import LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.folder import prepare_folder, remove_folder
from ramet.effects.machine import make_machine
from ramet.effects.site import Rig, Site, limits_of
from ramet.net.taps import Tap
from ramet.telemetry.timings import phase, staged
from ramet.vmm.port import Vm


async def boot(site: Site, record: InstanceRecord) -> tuple[Rig, LayerId]:
    """Start the VMM of a new instance; its guest is not awaited.

    Raises:
        RametError: it did not work, and nothing of it is left but the reserved endpoint.
    """
    driver = site.driver_of(record)
    async with undone_on_failure(site, record) as made:
        with phase("disk"):
            size_bytes, behind = record.spec.overlay_bytes, record.spec.overlay_parts
            await to_thread.run_sync(site.layers.ensure_base, size_bytes, behind)
            layer = made.layer = site.layers.create(size_bytes, driver.disk_form, behind)
        with phase("folder"):
            prepare_folder(site, record)
        async with attached(site, record) as tap:
            machine = make_machine(site, record, layer, tap)
            async with staged("vmm_start", site.stages.vmm_start()):
                vm = await driver.boot(machine)
        rig = site.rigs[record.id] = Rig(record.id, vm, layer)
        return rig, layer


@asynccontextmanager
async def attached(site: Site, record: InstanceRecord) -> AsyncIterator[Tap | None]:
    """Hold a TAP open, to be handed to the VMM started inside; None without a network.

    Outside, the VMM holds it alone, or nobody does and it is gone. One that the VMM opens itself is not held
    open, and is there until it is detached.
    """
    if record.identity.slot is None:
        yield None
        return
    with phase("network"):
        by_name = site.driver_of(record).opens_taps
        tap = await site.network.attach(record.id, limits_of(record.spec), by_name=by_name)
    try:
        yield tap
    finally:
        tap.close()


@dataclass(slots=True)
class Made:
    """What has been made so far that the record does not name yet."""

    layer: LayerId | None = None
    vm: Vm | None = None


@asynccontextmanager
async def undone_on_failure(site: Site, record: InstanceRecord) -> AsyncIterator[Made]:
    """If the inside fails or is cancelled, take down all of the instance but its reserved endpoint."""
    made = Made()
    try:
        yield made
    except BaseException:
        with anyio.CancelScope(shield=True):
            async with (
                AsyncExitStack() as undo
            ):  # From the last to the first, each whatever became of another.
                if record.identity.slot is not None:
                    undo.push_async_callback(site.network.detach, record.id)
                undo.push_async_callback(to_thread.run_sync, remove_folder, site.instance_folder(record.id))
                if made.layer is not None:
                    undo.callback(site.layers.release, made.layer)
                undo.callback(site.captures.hold_only, None, record.id)
                if made.vm is not None:
                    undo.push_async_callback(made.vm.kill)
                rig = site.rigs.pop(record.id, None)
                if rig is not None:
                    undo.push_async_callback(rig.vm.kill)
                    undo.push_async_callback(rig.close)
        raise
