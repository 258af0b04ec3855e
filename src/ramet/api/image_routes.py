"""The calls on images. A name may hold slashes, so it is the rest of the path."""

from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final

import anyio
from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from ramet.api.asked import check_tags, tag_filter, to_platform
from ramet.api.paging import Limit, Place, page
from ramet.api.ports import CatalogPort, FleetPort, SnapshotsPort
from ramet.api.shown import to_image
from ramet.core.errors import Invalid
from ramet.images import (
    Credentials,
    Digest,
    Image,
    Platform,
    PullStatus,
    PullView,
    Reference,
    parse_reference,
)
from ramet.images.errors import ImageNotFound, ImageNotReady, InvalidReference, NoMatchingPlatform
from ramet.wire_api import images as wire
from ramet.wire_api.errors import Error

PULL_WAIT_S: Final = 5.0  # How long making an instance waits for its image.
CREDENTIAL_LENGTH_MAX: Final = 64 << 10

_IMAGES: Final = TypeAdapter(tuple[wire.Image, ...])


def router(fleet: FleetPort, catalog: CatalogPort, snapshots: SnapshotsPort) -> APIRouter:
    """Return the routes on images. What instances and snapshots stand on is in use."""
    routes = APIRouter(prefix="/images", tags=["images"], responses={"default": {"model": Error}})

    def is_in_use(digest: Digest) -> bool:
        specs = (*(view.record.spec for view in fleet.list()), *(found.spec for found in snapshots.list()))
        return any(spec.image_digest == digest for spec in specs)

    @routes.get("", response_model=tuple[wire.Image, ...])
    async def list_images(request: Request, limit: Limit = None, cursor: str | None = None) -> Response:
        wanted = tag_filter(request)
        found = [image for image in _all(catalog) if wanted.items() <= (image.tags or {}).items()]
        told = page(found, _place, limit, cursor)
        shown = _IMAGES.dump_json(tuple(told.items))
        return Response(shown, media_type="application/json", headers=told.headers)

    @routes.post("", status_code=HTTPStatus.ACCEPTED)
    async def pull_image(body: wire.PullImage) -> wire.Image:
        reference = parse_reference(body.name)
        if body.tags is not None:
            check_tags(body.tags)
        view = await catalog.pulls.start(
            reference,
            platform=None if body.platform is None else to_platform(body.platform),
            credentials=_to_credentials(body.credentials),
            labels=body.tags,
        )
        if view.status is PullStatus.READY:
            return _named(catalog.resolve(body.name), body.name)
        return _pull_to_wire(view)

    _add_names(routes, catalog)

    @routes.get("/{name:path}")
    async def get_image(name: str) -> wire.Image:
        view = catalog.pulls.find(name)
        try:
            found = catalog.resolve(name)
        except ImageNotFound:
            if view is None:
                raise
            return _pull_to_wire(view)
        if view is not None and _is_about_to_name(view, found):
            return _pull_to_wire(view)
        return _named(found, name)

    @routes.delete("/{name:path}", status_code=HTTPStatus.NO_CONTENT)
    async def delete_image(name: str) -> None:
        await catalog.remove(name, in_use=is_in_use)

    return routes


def _all(catalog: CatalogPort) -> tuple[wire.Image, ...]:
    """Return every name of every image, and then the pulls that have not become one."""
    ready = [to_image(image, name) for image in catalog.list() for name in image.tags or (str(image.digest),)]
    named = {(image.name, image.digest) for image in ready}
    pulls = [_pull_to_wire(view) for view in catalog.pulls.list()]
    # One that has made its image, and named it, is there still for as long as it takes to forget it.
    current = (pull for pull in pulls if pull.error or (pull.name, pull.digest) not in named)
    return (*ready, *current)


def _place(image: wire.Image) -> Place:
    """Return when an image was made or asked for, and what tells it from the others of that moment."""
    # Two pulls of one name are for two platforms; and one that failed may have a name that an image has.
    which = f"{image.name} {image.platform} {'pull' if image.progress else 'image'}"
    return datetime.fromisoformat(image.created_at).timestamp(), which


def _add_names(routes: APIRouter, catalog: CatalogPort) -> None:
    @routes.post("/import", status_code=HTTPStatus.CREATED)
    async def import_image(body: wire.ImportImage) -> wire.Image:
        path = Path(body.path)
        if not path.is_absolute() or "\0" in body.path:
            raise Invalid(f"The path {body.path[:200]!r} is not absolute", field="path")
        return to_image(await catalog.import_path(path, name=body.name))

    @routes.post("/{name:path}/tag", status_code=HTTPStatus.CREATED)
    async def tag_image(name: str, body: wire.TagImage) -> wire.Image:
        view = catalog.pulls.find(name)
        try:
            return to_image(await catalog.tag(name, body.target))
        except ImageNotFound as absent:
            if view is None or view.status is PullStatus.FAILED:
                raise
            raise _not_ready(view.reference) from absent


async def find_or_pull(catalog: CatalogPort, ref: str, platform: Platform) -> Image:
    """Return the image that `ref` names, if it is for `platform`; one that is not here is pulled.

    Raises:
        ImageNotReady: it is being pulled, and the time a request may wait for that is over.
        NoMatchingPlatform: somebody pulled it for another one.
        RametError: why it cannot be had.
    """
    try:
        found = catalog.resolve(ref)
        if not platform.accepts(found.platform):
            raise NoMatchingPlatform(
                f"The image {ref} is for {found.platform}, and this host runs {platform}",
                remedy=f"pull it for this host: ramet pull --platform {platform} {ref}",
                wanted=str(platform),
                found=[str(found.platform)],
            )
        return found
    except ImageNotFound as absent:
        try:
            reference = parse_reference(ref)
        except InvalidReference:
            raise absent from None  # The beginning of a digest, which no registry would know.
    with anyio.move_on_after(PULL_WAIT_S):
        pulled = await catalog.pulls.fetch(reference)
        catalog.resolve(pulled.digest)  # It may be gone again by now; from here on nobody else has a turn.
        return pulled
    raise _not_ready(reference)


def _not_ready(reference: Reference) -> ImageNotReady:
    return ImageNotReady(
        f"The image {reference.display} is still being pulled",
        remedy=f"follow it with: ramet pull {reference.display}",
        image=str(reference),
    )


def _is_about_to_name(view: PullView, found: Image) -> bool:
    """Tell whether this pull has made the image and its name is still to come: it is not ready yet."""
    is_under_way = view.status not in (PullStatus.READY, PullStatus.FAILED)
    return is_under_way and view.digest == found.digest and view.reference.name not in found.tags


def _named(found: Image, ref: str) -> wire.Image:
    """Return `found` under the name in `ref`, if that is one of its names: a digest may stand behind it."""
    try:
        name = parse_reference(ref).name
    except InvalidReference:  # The beginning of a digest.
        return to_image(found)
    return to_image(found, name if name in found.tags else None)


def _to_credentials(body: wire.PullCredentials | None) -> Credentials | None:
    if body is None:
        return None
    found = Credentials(body.username or "", body.password or "", "", body.registry_token or "")
    if max(map(len, (found.username, found.password, found.registry_token))) > CREDENTIAL_LENGTH_MAX:
        raise Invalid(f"A credential has more than {CREDENTIAL_LENGTH_MAX} characters", field="credentials")
    if found.password and not found.username:
        raise Invalid("There is a password without a username", field="credentials.username")
    return found or None


def _pull_to_wire(view: PullView) -> wire.Image:
    return wire.Image(
        name=str(view.reference),
        digest=view.digest or "",
        status=view.status.value,
        created_at=view.created_at.isoformat(),
        platform=str(view.platform),
        tags=view.labels,
        error=None if view.error is None else str(view.error),
        error_code=None if view.error is None else view.error.code,
        queue_position=view.queue_position,
        progress=wire.ImageProgress(view.layer_count, view.layers_done, view.total_bytes, view.done_bytes),
    )
