"""What a starting daemon finds, and what becomes of it.

A VMM that runs is never ended for our own restart. First of all the guests that we paused, and did not live
to resume, run again. Then records and host are laid side by side: what both know is adopted, what only the
host knows is removed, what only a record knows has stopped; and half-made things are gone without trace.

A VMM that does not answer is not ended either: nobody can tell it from one that is busy. It is shown as
Unknown, without our record of it being changed, and asked again; the next start does the same.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ramet.core.errors import RametError
from ramet.core.ids import CaptureId, InstanceId, LayerId
from ramet.core.spec import InstanceRecord, Runtime, State
from ramet.disks.layers import LayerBroken
from ramet.effects.captures import CAPTURE, SUSPEND
from ramet.effects.counting import count_found
from ramet.effects.folder import keep_folder, remove_folder
from ramet.effects.hold import Held, hold, tell_end
from ramet.effects.rebuild import find_lost_records, take_up
from ramet.effects.site import Rig, Site, limits_of
from ramet.instance.events import DeleteAsked, Event, Found, FoundSilent, VmmExited, WakeFailed
from ramet.instance.fleet_types import HypervisorUnavailable
from ramet.instance.transitions import is_starting, is_waking
from ramet.snapshots.store import CaptureBroken
from ramet.vmm.port import Driver, VmmFailed, VmmSilent

_ALIVE: Final = frozenset({State.INITIALIZING, State.RUNNING, State.PAUSED, State.SHUTDOWN})
_HAS_VMM: Final = _ALIVE | {State.UNKNOWN}

log = structlog.get_logger(__name__)


Reconciled = Sequence[tuple[InstanceRecord, Event | None]]
"""The instances there are, each with the event its actor is to begin with."""


async def reconcile(site: Site) -> Reconciled:
    """Bring records and host together. The network is opened here, after the guests run again.

    Raises:
        RametError: state or host are such that going on would lose something.
    """
    records = {record.id: record for record in site.database.load()}
    lost = await to_thread.run_sync(find_lost_records, site, records)
    found = await _hold_vmms(site, {**records, **{record.id: record for record in lost}})
    running = found.held.keys() | found.silent.keys()
    await site.network.open()
    for record in list(records.values()):
        if record.state is State.CREATED:
            log.info("half_made_instance_removed", instance=record.id, name=record.name)
            # Before its record goes: a folder without one is taken for what is left of a lost record.
            await to_thread.run_sync(remove_folder, site.instance_folder(record.id))
            site.database.forget(record.id)
            del records[record.id]
        elif record.identity.slot is not None:
            site.network.adopt(
                record.id,
                record.identity.slot,
                is_attached=record.id in running,
                limits=limits_of(record.spec),
                by_name=site.opens_taps(record.spec),
            )
    for record in lost:
        log.warning("lost_record_made_again", instance=record.id, name=record.name)
        records[record.id] = take_up(site, record, is_running=record.id in running)
    for instance, layer in _switched_layers(site, records).items():
        if instance not in found.held:
            records[instance] = replace(records[instance], layer=layer)
    for instance, capture in _stored_captures(site, records).items():
        if instance not in running:
            asleep = replace(records[instance], state=State.STANDBY, runtime=None, capture=capture)
            records[instance] = asleep
    instances = [await _adopt(site, record, found) for record in records.values()]
    await to_thread.run_sync(count_found, site, [record for record, _ in instances])
    for record, _ in instances:
        site.volumes.attachments.take_up(record)
    # What a VMM without an answer writes to, record and journal say; without a record, only it knows.
    lost_and_silent = {record.id for record in lost} & found.silent.keys()
    await _remove_strays(site, set(records), keep_layers=bool(lost_and_silent))
    with site.database.transaction():
        _keep_told(site, [record for record, _ in instances])
        for entry in site.database.unfinished():
            log.info("operation_undone", operation=entry.operation, instance=entry.instance)
            site.database.end(entry.id)
    return instances


def _keep_told(site: Site, records: Sequence[InstanceRecord]) -> None:
    """Write what only the journal knows before it forgets it, and nothing else.

    That is the layer that a capture switched its source to, and the memory of one that was put to sleep.
    """
    known = {record.id: record for record in records}
    for stored in site.database.load():
        record = known[stored.id]
        rig = site.rigs.get(stored.id)
        kept = replace(stored, layer=rig.layer if rig is not None else record.layer)
        if record.state is State.STANDBY and stored.state is State.PAUSED:
            kept = replace(kept, state=record.state, runtime=None, capture=record.capture)
        if kept != stored:
            site.database.save(kept)


def _stored_captures(site: Site, records: dict[InstanceId, InstanceRecord]) -> dict[InstanceId, CaptureId]:
    """Return the stored memory of those who were put to sleep, and whose record could not be written."""
    found: dict[InstanceId, CaptureId] = {}
    for entry in site.database.unfinished():
        record = records.get(entry.instance)
        if entry.operation != SUSPEND or record is None or record.state is not State.PAUSED:
            continue
        capture = CaptureId(str(entry.facts.get("capture")))
        try:
            site.captures.manifest(capture)
        except CaptureBroken:
            continue  # It was not whole when we were killed: its instance ran, or has ended.
        log.info("stored_capture_found", instance=record.id, capture=capture)
        found[record.id] = capture
    return found


def _switched_layers(site: Site, records: dict[InstanceId, InstanceRecord]) -> dict[InstanceId, LayerId]:
    """Return the layers that captures may have switched sources to without a record of it.

    An empty one reads as that below it, so it is right for a source that was not switched, too.
    """
    found: dict[InstanceId, LayerId] = {}
    for entry in site.database.unfinished():
        record, layer = records.get(entry.instance), LayerId(str(entry.facts.get("layer")))
        if entry.operation != CAPTURE or record is None or record.layer is None:
            continue
        # The record of one switch may not have been written when the next was made: they follow each other.
        if site.layers.is_directly_on(layer, found.get(record.id, record.layer)):
            log.info("switched_layer_found", instance=record.id, layer=layer)
            found[record.id] = layer
    return found


@dataclass(frozen=True, slots=True)
class _Silent:
    """A VMM that runs and does not answer."""

    runtime: Runtime
    error: RametError


@dataclass(frozen=True, slots=True)
class _Vmms:
    """The VMMs on this host that belong to whole instances."""

    held: dict[InstanceId, Held] = field(default_factory=dict)
    silent: dict[InstanceId, _Silent] = field(default_factory=dict)


async def _hold_vmms(site: Site, records: dict[InstanceId, InstanceRecord]) -> _Vmms:
    """Take hold of every VMM of ours; end those that belong to no whole instance.

    All at once: the longest that a silent VMM may take is the longest that all of them take.
    """
    vmms = _Vmms()

    async def take(driver: Driver, instance: InstanceId, runtime: Runtime) -> None:
        record = records.get(instance)
        if record is None or record.state not in _HAS_VMM or is_waking(record):
            log.info("stray_vmm_ended", instance=instance)
            await driver.end(runtime)
            return
        try:
            vmms.held[instance] = await hold(site, driver, instance, runtime)
        except VmmSilent as error:
            log.warning("vmm_does_not_answer", instance=instance, error=str(error))
            vmms.silent[instance] = _Silent(runtime, error)
        except RametError as error:
            log.warning("vmm_not_adopted", instance=instance, error=str(error))
            await driver.end(runtime)

    found = [
        (driver, instance, runtime)
        for driver in site.drivers.values()
        for instance, runtime in (await driver.find()).items()
    ]
    async with anyio.create_task_group() as group:
        for each in found:
            group.start_soon(take, *each)
    return vmms


async def _adopt(site: Site, record: InstanceRecord, vmms: _Vmms) -> tuple[InstanceRecord, Event | None]:
    if record.id in vmms.held:
        return _adopt_held(site, record, vmms.held[record.id])
    silent = vmms.silent.get(record.id)
    no_memory = _hold_memory(site, record)  # First of all: whatever else is wrong may be mended, this not.
    if record.is_deleting or record.becoming is not None:
        # Of a destruction that had begun, nobody knows how far it came: its layers may be gone.
        runtime = silent.runtime if silent else None
        return replace(record, is_deleting=False, state=State.UNKNOWN, runtime=runtime), DeleteAsked()
    if record.layer is not None:
        try:
            site.layers.hold(record.layer)
        except LayerBroken as error:
            log.warning("instance_has_lost_its_disk", instance=record.id, error=str(error))
            runtime = silent.runtime if silent else None
            return replace(record, state=State.UNKNOWN, runtime=runtime, state_error=str(error)), None
        keep_folder(site.instance_folder(record.id))
    if no_memory is not None:
        log.warning("instance_has_lost_its_memory", instance=record.id, error=str(no_memory))
        return replace(record, state=State.UNKNOWN, state_error=str(no_memory)), None
    if silent is not None:
        text = f"its VMM does not answer: {silent.error}"
        unknown = replace(record, state=State.UNKNOWN, runtime=silent.runtime, state_error=text)
        return unknown, FoundSilent(record.state) if record.state in _ALIVE else None
    if record.state not in _ALIVE:
        return record, None
    return await _adopt_ended(site, record)


def _hold_memory(site: Site, record: InstanceRecord) -> CaptureBroken | None:
    """Hold the memory that a record names, if any; returns why that is not possible."""
    if record.capture is not None:
        try:
            site.captures.hold(record.capture, record.id)
        except CaptureBroken as error:
            return error
    return None


async def _adopt_ended(site: Site, record: InstanceRecord) -> tuple[InstanceRecord, Event | None]:
    """Of an instance that ran, or was being started, nothing runs any more."""
    try:
        site.driver_of(record)
    except HypervisorUnavailable as error:  # Its VMM may well run: nobody here can tell.
        log.warning("instance_has_lost_its_hypervisor", instance=record.id, error=str(error))
        return replace(record, state=State.UNKNOWN, state_error=str(error)), None
    if is_waking(record):
        return record, WakeFailed(VmmFailed("the daemon ended while it was being woken"))
    if is_starting(record):
        return record, VmmExited(None, "the daemon ended while it was being started", time.time())
    return record, await tell_end(site, record, "it ended while the daemon was away")


def _adopt_held(site: Site, record: InstanceRecord, held: Held) -> tuple[InstanceRecord, Event | None]:
    # The VMM knows what it writes to: we may have been killed between a switch and our record of it.
    layer = held.layer or record.layer
    assert layer is not None, "a running instance has a disk"
    site.rigs[record.id] = Rig(record.id, held.vm, layer)
    try:
        site.layers.hold(layer)
    except LayerBroken as error:
        log.warning("running_instance_has_lost_its_disk", instance=record.id, error=str(error))
        return replace(record, state=State.UNKNOWN, is_deleting=False, state_error=str(error)), None
    if record.is_deleting or record.becoming is not None:
        return replace(record, is_deleting=False, state=State.UNKNOWN, layer=layer), DeleteAsked()
    return record, Found(held.vm.runtime, layer)


async def _remove_strays(site: Site, known: set[InstanceId], *, keep_layers: bool) -> None:
    """Remove folders, layers, TAPs and firewall elements of nobody."""
    for folder in site.folder.instances.iterdir():
        if folder.name not in known:
            await to_thread.run_sync(remove_folder, folder)
    layers = [] if keep_layers else site.layers.sweep()
    captures = site.captures.sweep()
    swept = await site.network.sweep()
    log.info("strays_removed", layers=len(layers), captures=len(captures), network=str(swept))
