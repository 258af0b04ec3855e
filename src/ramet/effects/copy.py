"""Copying a restore point: a new instance that sleeps, or is stopped, where another one did.

Nothing is copied but names: its disk is an empty layer over the frozen one, its memory the stored capture
that both wake from.
"""

from ramet.core.ids import LayerId
from ramet.core.spec import InstanceRecord, RestorePoint
from ramet.effects.berth import Berth
from ramet.effects.boot import undone_on_failure
from ramet.effects.folder import name_folder, prepare_folder
from ramet.effects.site import Site


async def copy(
    site: Site, record: InstanceRecord, point: RestorePoint, berth: Berth | None = None
) -> LayerId:
    """Have `record` stand where `point` does, on the disk layer that is returned.

    In `berth`, if it was minted into one, a VMM waits for it to be woken.

    Raises:
        RametError: it did not work, and nothing of it is left but the reserved endpoint.
    """
    async with undone_on_failure(site, record) as made:
        if berth is not None:
            made.vm = berth.vm
        if point.capture is not None:
            site.captures.hold(point.capture, record.id)
        form = site.driver_of(record).disk_form
        made.layer = site.layers.create_on(point.layer, record.spec.disk_bytes, form=form)
        if berth is None:
            prepare_folder(site, record)
        else:
            name_folder(site, record)
        return made.layer
