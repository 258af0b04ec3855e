"""What a starting daemon finds, and what becomes of it.

A VMM that runs is never ended for our own restart. First of all the guests that we paused, and did not live
to resume, run again. Then records and host are laid side by side: what both know is adopted, what only the
host knows is removed, what only a record knows has stopped; and half-made things are gone without trace.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.disks.layers import LayerBroken
from ramet.effects.boot import remove_folder
from ramet.effects.end import read_exit
from ramet.effects.site import Rig, Site
from ramet.instance.transitions import DeleteAsked, Event, Found, VmmExited
from ramet.vmm.port import LiveCapture, Vm

THAW_TIMEOUT_S: Final = 20.0

_ALIVE: Final = frozenset({State.INITIALIZING, State.RUNNING, State.PAUSED, State.SHUTDOWN})

log = structlog.get_logger(__name__)


Reconciled = Sequence[tuple[InstanceRecord, Event | None]]
"""The instances there are, each with the event its actor is to begin with."""


async def reconcile(site: Site) -> Reconciled:
    """Bring records and host together. The network is opened here, after the guests run again.

    Raises:
        RametError: state or host are such that going on would lose something.
    """
    records = {record.id: record for record in site.database.load()}
    vms = await _hold_vmms(site, records)
    await site.network.open()
    instances = []
    for record in records.values():
        if record.state is State.CREATED:
            log.info("half_made_instance_removed", instance=record.id, name=record.name)
            site.database.forget(record.id)
            continue
        if record.identity.slot is not None:
            site.network.adopt(record.id, record.identity.slot)
        instances.append(await _adopt(site, record, vms.get(record.id)))
    await _remove_strays(site, {record.id for record, _ in instances})
    for entry in site.database.unfinished():
        log.info("operation_undone", operation=entry.operation, instance=entry.instance)
        site.database.end(entry.id)
    return instances


async def _hold_vmms(site: Site, records: dict[InstanceId, InstanceRecord]) -> dict[InstanceId, Vm]:
    """Take hold of every VMM of ours; resume the paused, end those that belong to no whole instance."""
    held: dict[InstanceId, Vm] = {}

    async def hold(instance: InstanceId) -> None:
        folder = site.instance_folder(instance)
        try:
            vm = await site.driver.adopt(instance, folder, found[instance])
        except RametError as error:
            log.warning("vmm_not_adopted", instance=instance, error=str(error))
            await site.driver.end(found[instance])
            return
        record = records.get(instance)
        if record is None or record.state not in _ALIVE | {State.UNKNOWN}:
            log.info("stray_vmm_ended", instance=instance)
            await vm.kill()
            return
        if await vm.is_paused():
            await vm.resume()
            log.info("paused_guest_resumed", instance=instance)
        held[instance] = vm

    found = await site.driver.find()
    async with anyio.create_task_group() as group:
        for instance in found:
            group.start_soon(hold, instance)
    return held


async def _adopt(site: Site, record: InstanceRecord, vm: Vm | None) -> tuple[InstanceRecord, Event | None]:
    if vm is None:
        if record.is_deleting:
            # Of a destruction that had begun, nobody knows how far it came: its layers may be gone.
            return replace(record, is_deleting=False, state=State.UNKNOWN), DeleteAsked()
        if record.layer is not None:
            try:
                site.layers.hold(record.layer)
            except LayerBroken as error:
                log.warning("instance_has_lost_its_disk", instance=record.id, error=str(error))
                return replace(record, state=State.UNKNOWN, runtime=None, state_error=str(error)), None
        if record.state not in _ALIVE:
            return record, None
        end, reason = await to_thread.run_sync(read_exit, site.instance_folder(record.id) / "console.log")
        return record, VmmExited(end, reason or "it ended while the daemon was away", time.time())
    # The VMM knows what it writes to: we may have been killed between a switch and our record of it.
    layer = record.layer
    if isinstance(vm, LiveCapture):
        layer = site.layers.id_of(await vm.top_layer())
    assert layer is not None, "a running instance has a disk"
    rig = site.rigs[record.id] = Rig(record.id, vm, layer)
    try:
        site.layers.hold(layer)
    except LayerBroken as error:
        log.warning("running_instance_has_lost_its_disk", instance=record.id, error=str(error))
        return replace(record, state=State.UNKNOWN, is_deleting=False, state_error=str(error)), None
    if record.is_deleting:
        return replace(record, is_deleting=False, state=State.UNKNOWN, layer=layer), DeleteAsked()
    if record.state is State.RUNNING:
        try:
            channel = await rig.channel(THAW_TIMEOUT_S)
            await channel.thaw()
        except RametError as error:
            log.warning("adopted_guest_does_not_answer", instance=record.id, error=str(error))
    return record, Found(vm.runtime, layer)


async def _remove_strays(site: Site, known: set[InstanceId]) -> None:
    """Remove folders, layers, TAPs and firewall elements of nobody."""
    for folder in site.folder.instances.iterdir():
        if folder.name not in known:
            await to_thread.run_sync(remove_folder, folder)
    layers = site.layers.sweep()
    swept = await site.network.sweep()
    log.info("strays_removed", layers=len(layers), network=str(swept))
