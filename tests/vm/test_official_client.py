"""What needs a guest works on real ones, too, by the official client, both ways; see `tests/compat`."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.compat import volume_drives
from tests.compat.client import Calls, Flavour
from tests.compat.drives import DRIVES, SMALL, Place
from tests.vm.daemon import Daemon

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

assert volume_drives, "they have entered themselves"

AWAITED = (
    "instances.start",
    "instances.restore",
    "instances.fork",
    "instances.wait",
    "instances.stat",
    "instances.stats",
    "instances.snapshots.restore",
    "snapshots.fork",
    "instances.auto_standby.status",
    "instances.volumes.attach",
    "lib.cp_from_instance",
)
PLAIN = (
    "instances.stop",
    "instances.standby",
    "instances.logs",
    "instances.snapshots.create",
    "instances.volumes.detach",
    "volumes.create_from_archive",
    "resources.reclaim_memory",
    "lib.cp_to_instance",
    "lib.exec",
)
CASES: tuple[tuple[Flavour, str], ...] = (
    *(("async", method) for method in AWAITED),
    *(("sync", method) for method in PLAIN),
)
_numbers = itertools.count(1)


@pytest.fixture
async def place(served: Daemon, tmp_path: Path, flavour: Flavour) -> AsyncIterator[Place]:
    """Return a place on the shared daemon where nothing of the test is left behind."""
    calls = Calls(flavour, "http://localhost", "none", served.folder / "api.sock")
    small = {**SMALL, "size": "256MB", "overlay_size": "1GB"}
    found = Place(calls, f"test-{next(_numbers)}", "nowhere", tmp_path, instance=small)
    yield found
    for snapshot in await calls("snapshots.list"):
        await calls("snapshots.delete", snapshot_id=snapshot.id)
    for instance in await calls("instances.list"):
        if instance.name.startswith(found.name):
            await calls("instances.delete", id=instance.id)
    for volume in await calls("volumes.list"):
        await calls("volumes.delete", id=volume.id)
    await calls.aclose()


@pytest.mark.parametrize(("flavour", "method"), CASES)
async def test_it_works_on_a_real_guest(place: Place, method: str) -> None:
    await DRIVES[method](place)
