"""Forking a running instance into one that runs.

What of a child does not depend on the capture (its endpoint's admission, its TAP, its folder) is made while
the capture is being taken.
"""

import time
from contextlib import AsyncExitStack

from ramet.core.ids import InstanceId, LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.awaken import awaken, waking_driver
from ramet.effects.boot import attached, undone_on_failure
from ramet.effects.folder import prepare_folder
from ramet.effects.site import Rig, Site
from ramet.snapshots.capture import Taken
from ramet.snapshots.flight import Flights
from ramet.telemetry.timings import Timings


async def fork(
    site: Site, flights: Flights[Taken], record: InstanceRecord, source: InstanceId, timings: Timings
) -> tuple[Rig, LayerId]:
    """Make `record` a running child of `source`.

    Raises:
        RametError: it did not work, and nothing of it is left but the reserved endpoint.
    """
    waking_driver(site, record)
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
        rig = await awaken(site, record, layer, taken.capture, tap_fd, until_started=until_started)
        timings.note("since_capture", time.perf_counter() - flight.landed_at)
        return rig, layer
