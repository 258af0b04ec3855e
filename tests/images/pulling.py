"""What all tests of pulls need: a catalog that pulls, impatiently, and an image to put into a registry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from ramet.core.errors import RametError
from ramet.images import (
    Catalog,
    Credentials,
    Image,
    ImageLimits,
    RegistryConfig,
    parse_platform,
    parse_reference,
)
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


async def pull(
    folder: Path,
    name: str,
    config: RegistryConfig = QUICK,
    *,
    credentials: Credentials | None = None,
    platform: str | None = None,
) -> Image:
    """Pull with a catalog in `folder` that lives as long as this call, and raise what the pull raises."""
    failure: RametError | None = None
    async with catalog_in(folder, config) as catalog:
        try:
            return await catalog.pulls.fetch(
                parse_reference(name),
                credentials=credentials,
                platform=None if platform is None else parse_platform(platform),
            )
        except RametError as error:
            failure = error  # Raised below, where no task group makes an `ExceptionGroup` of it.
    assert failure is not None
    raise failure


def fill(registry: LyingRegistry) -> Json:
    layers = [tar([file("big", incompressible(LAYER_BYTES))]), tar([file("small", b"x")])]
    manifest = registry.blobs.manifest(layers, config={"Cmd": ["/big"]})
    registry.put(manifest)
    return manifest


def big_blob(registry: LyingRegistry) -> str:
    return max(registry.blobs.by_digest, key=lambda digest: len(registry.blobs.by_digest[digest]))
