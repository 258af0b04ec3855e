"""One daemon for all of them; what a test makes goes with it."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from examples.make_image import make_oci_layout
from ramet.images import Catalog, ImageLimits
from tests.api.stand_in import token
from tests.compat.client import FLAVOURS, Calls, Flavour
from tests.compat.drives import IMAGE, Place
from tests.compat.server import Served, serve
from tests.effects.world import new_folder

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs erofs-utils")
    folder = new_folder()
    make_oci_layout(folder / "oci", IMAGE, {"etc/name": (0o644, b"demo")}, {}, {"Cmd": ["sleep"]})

    async def load() -> None:
        catalog = Catalog(folder / "images", ImageLimits())
        await catalog.open()
        await catalog.import_path(folder / "oci", name=IMAGE)

    asyncio.run(load())
    with serve(folder / "images") as served:
        yield served
    shutil.rmtree(folder)


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.param
    return found


@pytest.fixture
async def place(server: Served, flavour: Flavour, tmp_path: Path) -> AsyncIterator[Place]:
    calls = Calls(flavour, server.url, token())
    found = Place(calls, f"test-{next(_numbers)}", server.registry, tmp_path)
    yield found
    for instance in await calls("instances.list"):
        if instance.name.partition("-")[0] == "test":
            await calls("instances.delete", id=instance.id)
    for volume in await calls("volumes.list"):
        if volume.name.partition("-")[0] == "test":
            await calls("volumes.delete", id=volume.id)
    await calls.aclose()
