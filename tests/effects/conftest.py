"""Every test here runs in a network namespace of its own, with one image all of them share."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from examples.make_image import make_oci_layout
from ramet.images import Catalog, ImageLimits
from ramet.vmm.fake.driver import MARK
from ramet.vmm.fake.nursery import Nursery
from tests.effects.crashing import Crashes
from tests.effects.world import World, new_folder
from tests.net.namespaces import own_namespace


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    """Put the test into a new namespace that has a loopback interface and nothing else."""
    with own_namespace():
        yield


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    """Return a catalog's folder with the image "demo:1" in it."""
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs erofs-utils")
    folder = new_folder()
    make_oci_layout(folder / "oci", "demo:1", {"etc/name": (0o644, b"demo")}, {}, {"Cmd": ["sleep"]})

    async def load() -> None:
        catalog = Catalog(folder / "images", ImageLimits())
        await catalog.open()
        await catalog.import_path(folder / "oci", name="demo:1")

    asyncio.run(load())
    yield folder / "images"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """What forks the VMMs of all these tests."""
    nursery = Nursery(MARK)
    yield nursery
    nursery.close()


@pytest.fixture
async def world(images: Path, nursery: Nursery) -> AsyncIterator[World]:
    """A host on which a daemon can be started, ended and killed; what is left on it goes with the test."""
    world = World(new_folder(), images)
    world.nursery = nursery
    yield world
    await world.aclose()


@pytest.fixture
def crashes(world: World) -> Iterator[Crashes]:
    """What has daemons on that host killed."""
    crashes = Crashes(world)
    yield crashes
    crashes.close()
