"""The calls on volumes: made, listed, removed; given to instances and taken back."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from ramet.api.asked import check_name, check_tags, tag_filter
from ramet.api.facts import HostFacts
from ramet.api.files_routes import body_of
from ramet.api.mounts import id_of, to_mount
from ramet.api.paging import Limit, page
from ramet.api.ports import FleetPort, VolumesPort
from ramet.api.shown import to_instance
from ramet.api.times import format_time
from ramet.core.errors import Invalid
from ramet.core.ids import NAME_LENGTH_MAX, is_name
from ramet.core.volumes import GIB, VOLUME_GIB_MAX, VolumeRecord
from ramet.instance.events import AttachAsked, DetachAsked
from ramet.wire_api import volumes as wire
from ramet.wire_api.errors import Error
from ramet.wire_api.instances import Instance

_VOLUMES: Final = TypeAdapter(tuple[wire.Volume, ...])
_TEXT_LENGTH_MAX: Final = 4096

Text = Annotated[str, Query(max_length=_TEXT_LENGTH_MAX)]


def router(fleet: FleetPort, volumes: VolumesPort, facts: HostFacts) -> APIRouter:
    """Return the routes on volumes, those below an instance among them."""
    routes = APIRouter(tags=["volumes"], responses={"default": {"model": Error}})
    _add_store(routes, volumes)
    _add_uses(routes, fleet, volumes, facts)
    return routes


def _add_store(routes: APIRouter, volumes: VolumesPort) -> None:
    @routes.get("/volumes", response_model=tuple[wire.Volume, ...])
    async def list_volumes(request: Request, limit: Limit = None, cursor: str | None = None) -> Response:
        found = volumes.list(tag_filter(request))
        told = page(found, lambda record: (record.created_at, record.id), limit, cursor)
        shown = tuple(_shown(volumes, record) for record in told.items)
        return Response(_VOLUMES.dump_json(shown), media_type="application/json", headers=told.headers)

    @routes.post("/volumes", status_code=HTTPStatus.CREATED)
    async def create_volume(body: wire.CreateVolume) -> wire.Volume:
        tags = body.tags or {}
        _check(body.name, body.size_gb, body.id, tags)
        return _shown(volumes, await volumes.create(body.name, body.size_gb * GIB, tags, body.id))

    @routes.post("/volumes/from-archive", status_code=HTTPStatus.CREATED)
    async def create_volume_from_archive(
        request: Request, name: Text, size_gb: int, id: Text | None = None
    ) -> wire.Volume:
        tags = tag_filter(request)
        _check(name, size_gb, id, tags)
        made = await volumes.create(name, size_gb * GIB, tags, id, body_of(request))
        return _shown(volumes, made)

    @routes.get("/volumes/{id}")
    async def get_volume(id: str) -> wire.Volume:
        return _shown(volumes, volumes.get(id))

    @routes.delete("/volumes/{id}", status_code=HTTPStatus.NO_CONTENT)
    async def delete_volume(id: str) -> None:
        await volumes.delete(id)


def _add_uses(routes: APIRouter, fleet: FleetPort, volumes: VolumesPort, facts: HostFacts) -> None:
    @routes.post("/instances/{id}/volumes/{volume_id}")
    async def attach_volume(id: str, volume_id: str, body: wire.AttachVolume) -> Instance:
        instance, volume = fleet.get(id).record.id, volumes.get(volume_id).id
        asked = AttachAsked(to_mount(volume, body))
        return to_instance(await fleet.change_volumes(instance, asked), facts)

    @routes.delete("/instances/{id}/volumes/{volume_id}")
    async def detach_volume(id: str, volume_id: str) -> Instance:
        instance = fleet.get(id).record.id
        asked = DetachAsked(id_of(volume_id, volumes))
        return to_instance(await fleet.change_volumes(instance, asked), facts)


def _check(name: str, size_gb: int, volume: str | None, tags: Mapping[str, str]) -> None:
    check_name(name, "a volume")
    if volume is not None and not is_name(volume):
        raise Invalid(
            f"{volume[: NAME_LENGTH_MAX + 1]!r} cannot be the id of a volume",
            remedy=f"use 1 to {NAME_LENGTH_MAX} lowercase letters, digits and inner dashes, or leave id out",
            field="id",
        )
    if not 1 <= size_gb <= VOLUME_GIB_MAX:
        raise Invalid(f"size_gb is {size_gb}, and must be from 1 to {VOLUME_GIB_MAX}", field="size_gb")
    check_tags(tags)


def _shown(volumes: VolumesPort, record: VolumeRecord) -> wire.Volume:
    attachments = volumes.attachments(record.id)
    return wire.Volume(
        id=record.id,
        name=record.name,
        size_gb=record.size_bytes // GIB,
        created_at=format_time(record.created_at),
        tags=record.tags,
        attachments=tuple(
            wire.VolumeAttachment(instance, mount.path, mount.is_read_only)
            for instance, mount in attachments.items()
        ),
    )
