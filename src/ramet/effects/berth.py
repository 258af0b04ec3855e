"""Berths: all of a child that can be made before its capture, its name and whoever will ask for it.

A berth has a child's id, slot, TAP, folder, disk layer and VMM, which waits for the capture to come. It is
counted and has a journal entry of its own until a fork takes it over, in the transaction that writes the
child's record. No record names it before: a daemon that starts finds an entry and strays, and removes both.
"""

import secrets
import time
from dataclasses import dataclass, replace
from typing import Final

from anyio import to_thread

from ramet.core.ids import CaptureId, InstanceId, LayerId, mint_id
from ramet.core.spec import InstanceIdentity, InstanceRecord, State
from ramet.effects.awaken import waking_driver
from ramet.effects.boot import attached
from ramet.effects.folder import prepare_folder, remove_folder
from ramet.effects.machine import make_machine
from ramet.effects.site import Site
from ramet.telemetry.timings import staged
from ramet.vmm.port import Capture, Restored

BERTH: Final = "berth"
"""The journal's word for one."""


@dataclass(slots=True, eq=False)
class Berth:
    """A child that nobody asked for yet. `record` stands in for its own; `entry` is that of the journal.

    `capture` is the one to come that its VMM maps the memory of, or `stored` the one that there is; `below`
    is what its disk stands on. Layer and VMM are there once it waits.
    """

    record: InstanceRecord
    entry: int
    below: LayerId
    capture: Capture | None
    stored: CaptureId | None = None
    layer: LayerId | None = None
    vm: Restored | None = None

    @property
    def id(self) -> InstanceId:
        return self.record.id

    def as_child(self, record: InstanceRecord) -> InstanceRecord:
        """Return the record of a child that takes this place."""
        slot = self.record.identity.slot
        return replace(record, identity=replace(record.identity, id=self.id, slot=slot))


def reserve_berth(site: Site, source: InstanceRecord, below: LayerId, capture: Capture | None) -> Berth:
    """Count, journal and give a slot to a berth for a child of `source`; nothing of it is on the host yet.

    Its disk is to stand on `below`, which need not be frozen yet.

    Raises:
        Exhausted: there is no room for it, or no slot.
        StateUnwritable: it cannot be journalled.
    """
    instance = InstanceId(mint_id())
    identity = InstanceIdentity(
        instance, f"{BERTH}-{instance}", None, secrets.token_hex(16), time.time(), source.id
    )
    record = InstanceRecord(source.spec.for_fork(), identity, State.CREATED)
    with site.admission.changing(record):
        if record.spec.has_network:
            slot = site.network.reserve(instance).slot
            record = replace(record, identity=replace(identity, slot=slot))
        try:
            entry = site.database.begin(BERTH, instance, source=source.id)
        except BaseException:
            site.network.give_back(instance)
            raise
    return Berth(record, entry, below, capture)


async def start_berth(site: Site, berth: Berth, capture: Capture) -> None:
    """Make all of a berth; returns when its VMM waits, mapping the memory of `capture`.

    If it fails or is cancelled, `end_berth` removes what there is.

    Raises:
        RametError: it did not work.
    """
    record = berth.record
    driver = waking_driver(site, record)
    await to_thread.run_sync(prepare_folder, site, record)
    berth.layer = site.layers.create_on(berth.below, record.spec.disk_bytes)
    async with attached(site, record) as tap:
        machine = make_machine(site, record, berth.layer, tap)
        async with staged("vmm_start", site.stages.vmm_start()):
            berth.vm = await driver.start_waiting(machine, capture)


async def leave_berth(site: Site, record: InstanceRecord, berth: Berth) -> None:
    """Give up the VMM, the TAP and the disk of a berth that `record` was minted into; folder and slot stay.

    Raises:
        RametError: a part of it is still there.
    """
    assert berth.vm is not None, "it waits"
    await berth.vm.kill()
    if record.identity.slot is not None:
        await site.network.detach(record.id)
    if berth.layer is not None:
        site.layers.release(berth.layer)


async def end_berth(site: Site, berth: Berth) -> None:
    """Remove a berth that nobody has taken, in an order that can be begun again at any point.

    Raises:
        RametError: a part of it is still there, and counted.
    """
    if berth.vm is not None:
        await berth.vm.kill()
    if berth.layer is not None:
        site.layers.release(berth.layer)
    await to_thread.run_sync(remove_folder, site.instance_folder(berth.id))
    await site.network.release(berth.id)
    site.database.end(berth.entry)
    site.admission.forget(berth.id)
