"""An image goes when no instance and no snapshot has it, of a daemon that runs; and not before."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from ramet.core.snapshot import SnapshotKind
from ramet.daemon.config import Settings
from ramet.daemon.wiring import make_keepers
from ramet.policies.retention import RetentionConfig, RetentionKeeper
from tests.effects.world import Daemon, World, performer_of

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

AT_ONCE = RetentionConfig(1e-6, ("*",))


@pytest.fixture
async def daemon(world: World, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon whose images are its own, so that one may go."""
    world.images = Path(shutil.copytree(world.images, tmp_path / "images", symlinks=True))
    async with world.daemon() as daemon:
        yield daemon


def keeper_of(daemon: Daemon) -> RetentionKeeper:
    performer = performer_of(daemon.fleet)  # Its own sweeps are off: only we sweep.
    return make_keepers(Settings(), daemon.fleet, performer, daemon.snapshots, daemon.site).retention


async def sweep_twice(keeper: RetentionKeeper) -> None:
    """The first look may be the one that finds it unused, at this very moment."""
    for _ in range(2):
        await keeper.sweep(AT_ONCE)


async def test_an_image_stays_as_long_as_an_instance_or_a_snapshot_has_it(daemon: Daemon) -> None:
    keeper, images = keeper_of(daemon), daemon.site.images
    await daemon.fleet.create("web", daemon.spec)
    await sweep_twice(keeper)
    assert len(images.list()) == 1

    snapshot = await daemon.snapshots.create("web", SnapshotKind.STANDBY, None, {})
    await daemon.fleet.delete("web")
    await sweep_twice(keeper)
    assert len(images.list()) == 1

    await daemon.snapshots.delete(snapshot.id)
    with anyio.fail_after(20):
        while images.list():
            await keeper.sweep(AT_ONCE)
    assert daemon.site.folder.unused_images.exists()


async def test_an_instance_that_is_just_being_made_has_its_image(daemon: Daemon) -> None:
    keeper, images = keeper_of(daemon), daemon.site.images
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.fleet.create, "web", daemon.spec)
        with anyio.fail_after(20):
            while not daemon.fleet.list():
                await anyio.lowlevel.checkpoint()
        await sweep_twice(keeper)
    assert len(images.list()) == 1
    assert daemon.fleet.get("web").record.state == "Running"
