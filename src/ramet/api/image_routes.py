"""The calls on images. A name may hold slashes, so it is the rest of the path."""

from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter

from ramet.api.ports import CatalogPort, FleetPort
from ramet.api.types import to_image
from ramet.core.errors import Invalid
from ramet.images import Digest
from ramet.wire_api import images as wire
from ramet.wire_api.errors import Error


def router(fleet: FleetPort, catalog: CatalogPort) -> APIRouter:
    """Return the routes on images."""
    routes = APIRouter(prefix="/images", tags=["images"], responses={"default": {"model": Error}})

    def is_in_use(digest: Digest) -> bool:
        return any(view.record.spec.image_digest == digest for view in fleet.list())

    @routes.get("")
    async def list_images() -> tuple[wire.Image, ...]:
        return tuple(
            to_image(image, name) for image in catalog.list() for name in image.tags or (str(image.digest),)
        )

    @routes.post("/import", status_code=HTTPStatus.CREATED)
    async def import_image(body: wire.ImportImage) -> wire.Image:
        path = Path(body.path)
        if not path.is_absolute() or "\0" in body.path:
            raise Invalid(f"The path {body.path[:200]!r} is not absolute", field="path")
        return to_image(await catalog.import_path(path, name=body.name))

    @routes.get("/{name:path}")
    async def get_image(name: str) -> wire.Image:
        return to_image(catalog.resolve(name))

    @routes.delete("/{name:path}", status_code=HTTPStatus.NO_CONTENT)
    async def delete_image(name: str) -> None:
        await catalog.remove(name, in_use=is_in_use)

    return routes
