"""Forking a running instance into one that runs.

What of a child does not depend on the capture (its endpoint's admission, its TAP, its folder) is made while
the capture is being taken; or it was made long before, with its VMM, where its source's pool had a berth.
"""

import time
from contextlib import AsyncExitStack

from anyio import to_thread

from ramet.core.ids import InstanceId, LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.awaken import awaken, awaken_waiting, waking_driver
from ramet.effects.berth import Berth, leave_berth
from ramet.effects.boot import Made, attached, undone_on_failure
from ramet.effects.folder import name_folder, prepare_folder
from ramet.effects.site import Rig, Site
from ramet.snapshots.capture import Taken
from ramet.snapshots.flight import Flight, Flights
from ramet.telemetry.timings import Timings


async def fork(
    site: Site,
    flights: Flights[Taken],
    record: InstanceRecord,
    source: InstanceId,
    timings: Timings,
    berth: Berth | None = None,
) -> tuple[Rig, LayerId]:
    """Make `record` a running child of `source`, in `berth` if it was minted into one.

    Raises:
        RametError: it did not work, and nothing of it is left but the reserved endpoint.
    """
    async with undone_on_failure(site, record) as made:
        rig = None if berth is None else _step_into(site, berth, made)
        waking_driver(site, record)
        async with flights.board(source) as flight:
            if berth is not None and rig is not None:
                with timings.phase("folder"):
                    await to_thread.run_sync(name_folder, site, record)
                taken = await _landed(site, record, flight, timings)
                if taken.capture is berth.capture:
                    assert berth.vm is not None, "it waits"
                    await awaken_waiting(site, record, rig, berth.vm, taken.capture)
                    _note(timings, flight, taken)
                    return rig, rig.layer
                # It waits for another capture than the one we came aboard.
                await leave_berth(site, record, berth)
                del site.rigs[record.id]
                made.layer = None
            return await _fork_from_nothing(site, record, flight, timings, made, has_folder=berth is not None)


async def _fork_from_nothing(
    site: Site,
    record: InstanceRecord,
    flight: Flight[Taken],
    timings: Timings,
    made: Made,
    *,
    has_folder: bool,
) -> tuple[Rig, LayerId]:
    async with AsyncExitStack() as until_started:
        if not has_folder:
            with timings.phase("folder"):
                prepare_folder(site, record)
        tap = await until_started.enter_async_context(attached(site, record))
        taken = await _landed(site, record, flight, timings)
        with timings.phase("disk"):
            layer = made.layer = site.layers.create_on(taken.frozen, record.spec.disk_bytes)
        rig = await awaken(site, record, layer, taken.capture, tap, until_started=until_started)
        _note(timings, flight, taken)
        return rig, layer


async def _landed(site: Site, record: InstanceRecord, flight: Flight[Taken], timings: Timings) -> Taken:
    with timings.phase("capture", "wait"):
        taken = await flight.wait_landed()
    site.admission.captures.map(record.id, taken.new_top)
    return taken


def _note(timings: Timings, flight: Flight[Taken], taken: Taken) -> None:
    timings.note("source_pause", taken.pause_s)
    timings.note("since_capture", time.perf_counter() - flight.landed_at)


def _step_into(site: Site, berth: Berth, made: Made) -> Rig:
    """Have what a berth holds be that of its child."""
    assert berth.vm is not None, "it waits"
    assert berth.layer is not None, "it waits on a disk"
    made.layer = berth.layer
    rig = site.rigs[berth.id] = Rig(berth.id, berth.vm, berth.layer)
    return rig
