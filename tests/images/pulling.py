"""What all tests of pulls need: a catalog that pulls, impatiently, and an image to put into a registry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from ramet.images import Catalog, ImageLimits, RegistryConfig
from tests.images.build import Json, file, tar
from tests.images.lying_registry import LyingRegistry, incompressible

QUICK = RegistryConfig(backoff_s=0.01, stall_timeout_s=0.5, document_timeout_s=0.5, wait_s_max=1.0)
LAYER_BYTES = 3 << 20


@asynccontextmanager
async def catalog_in(
    folder: Path, config: RegistryConfig = QUICK, limits: ImageLimits | None = None
) -> AsyncIterator[Catalog]:
    catalog = Catalog(folder, limits or ImageLimits(), registries=config)
    await catalog.open()
    async with anyio.create_task_group() as group:
        await group.start(catalog.pulls.run)
        yield catalog
        group.cancel_scope.cancel()


def fill(registry: LyingRegistry) -> Json:
    layers = [tar([file("big", incompressible(LAYER_BYTES))]), tar([file("small", b"x")])]
    manifest = registry.blobs.manifest(layers, config={"Cmd": ["/big"]})
    registry.put(manifest)
    return manifest


def big_blob(registry: LyingRegistry) -> str:
    return max(registry.blobs.by_digest, key=lambda digest: len(registry.blobs.by_digest[digest]))
