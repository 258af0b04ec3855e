"""The calls on named snapshots: taken of instances, listed, forked, and gone back to."""

from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from ramet.api.asked import (
    check_name,
    check_tags,
    tag_filter,
    to_compression,
    to_kind,
    to_pool_size,
    to_target,
)
from ramet.api.facts import HostFacts
from ramet.api.files_routes import ArchiveStream, body_of
from ramet.api.forks import answer_many, answer_one, names_of
from ramet.api.hypervisors import to_target_hypervisor
from ramet.api.paging import Limit, page
from ramet.api.ports import FleetPort, SnapshotsPort
from ramet.api.shown import to_instance, to_snapshot, to_verification
from ramet.core.errors import Invalid
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.wire_api import instances as wire_instances
from ramet.wire_api import snapshots as wire
from ramet.wire_api.errors import Error
from ramet.wire_api.pools import SetForkPool

_SNAPSHOTS: Final = TypeAdapter(tuple[wire.Snapshot, ...])


def router(fleet: FleetPort, snapshots: SnapshotsPort, facts: HostFacts) -> APIRouter:
    """Return the routes on snapshots, those below an instance among them."""
    routes = APIRouter(tags=["snapshots"], responses={"default": {"model": Error}})
    _add_list(routes, snapshots)
    _add_store(routes, fleet, snapshots)
    _add_uses(routes, fleet, snapshots, facts)
    return routes


def _add_list(routes: APIRouter, snapshots: SnapshotsPort) -> None:
    @routes.get("/snapshots", response_model=tuple[wire.Snapshot, ...])
    async def list_snapshots(
        request: Request,
        source_instance_id: str | None = None,
        kind: str | None = None,
        name: str | None = None,
        limit: Limit = None,
        cursor: str | None = None,
    ) -> Response:
        found = snapshots.list(
            source=source_instance_id,
            kind=None if kind is None else to_kind(kind),
            name=name,
            tags=tag_filter(request),
        )
        told = page(found, lambda record: (record.created_at, record.id), limit, cursor)
        shown = tuple(_shown(snapshots, record) for record in told.items)
        return Response(_SNAPSHOTS.dump_json(shown), media_type="application/json", headers=told.headers)


def _add_store(routes: APIRouter, fleet: FleetPort, snapshots: SnapshotsPort) -> None:
    @routes.get("/snapshots/{snapshot_id}/export", response_class=ArchiveStream, status_code=HTTPStatus.OK)
    async def export_snapshot(snapshot_id: str) -> Response:
        return ArchiveStream(snapshots.export(snapshots.get(snapshot_id).id))

    @routes.post("/snapshots/import", status_code=HTTPStatus.CREATED)
    async def import_snapshot(request: Request, name: str | None = None) -> wire.Snapshot:
        if name is not None:
            check_name(name, "a snapshot")
        record = await snapshots.import_file(body_of(request), name)
        return _shown(snapshots, record)

    @routes.post("/snapshots/{snapshot_id}/verify")
    async def verify_snapshot(snapshot_id: str) -> wire.SnapshotVerification:
        record = snapshots.get(snapshot_id)
        return to_verification(record.id, await snapshots.verify(record.id))

    @routes.get("/snapshots/{snapshot_id}")
    async def get_snapshot(snapshot_id: str) -> wire.Snapshot:
        record = snapshots.get(snapshot_id)
        return _shown(snapshots, record)

    @routes.delete("/snapshots/{snapshot_id}", status_code=HTTPStatus.NO_CONTENT)
    async def delete_snapshot(snapshot_id: str) -> None:
        await snapshots.delete(snapshot_id)

    @routes.post("/instances/{id}/snapshots", status_code=HTTPStatus.CREATED)
    async def create_snapshot(id: str, body: wire.CreateSnapshot) -> wire.Snapshot:
        kind = to_kind(body.kind)
        ask = to_compression(body.compression)
        if kind is SnapshotKind.STOPPED and ask.how is not None:
            raise Invalid(
                "a snapshot of kind Stopped has no memory to compress",
                remedy="leave out compression",
                field="compression",
            )
        if body.name is not None:
            check_name(body.name, "a snapshot")
        check_tags(body.tags or {})
        source = fleet.get(id).record.id
        size = to_pool_size(body.fork_pool or 0, "fork_pool")
        if size and kind is SnapshotKind.STOPPED:
            raise Invalid(
                "a snapshot of kind Stopped has no memory that children could wait for",
                remedy="leave out fork_pool",
                field="fork_pool",
            )
        record = await snapshots.create(source, kind, body.name, body.tags or {}, ask)
        if size:
            record = snapshots.set_fork_pool(record.id, size)
        return _shown(snapshots, record)


def _shown(snapshots: SnapshotsPort, record: SnapshotRecord) -> wire.Snapshot:
    return to_snapshot(record, snapshots.memory_state(record), snapshots.fork_pool(record))


def _add_uses(routes: APIRouter, fleet: FleetPort, snapshots: SnapshotsPort, facts: HostFacts) -> None:
    @routes.put("/snapshots/{snapshot_id}/fork_pool")
    async def set_fork_pool(snapshot_id: str, body: SetForkPool) -> wire.Snapshot:
        return _shown(snapshots, snapshots.set_fork_pool(snapshot_id, to_pool_size(body.size)))

    @routes.post("/snapshots/{snapshot_id}/fork", status_code=HTTPStatus.CREATED)
    async def fork_snapshot(snapshot_id: str, body: wire.ForkSnapshot) -> wire_instances.Instance:
        check_name(body.name)
        target = to_target(body.target_state)
        record = snapshots.get(snapshot_id)
        hypervisor = to_target_hypervisor(body.target_hypervisor, record, facts)
        made = await snapshots.fork(record.id, [body.name], target=target, hypervisor=hypervisor)
        return answer_one(made, facts)

    @routes.post(
        "/snapshots/{snapshot_id}/forks",
        status_code=HTTPStatus.CREATED,
        response_model=wire_instances.ForkManyResult,
    )
    async def fork_snapshot_many(snapshot_id: str, body: wire_instances.ForkMany) -> Response:
        names, target = names_of(body), to_target(body.target_state)
        record = snapshots.get(snapshot_id)
        return answer_many(await snapshots.fork(record.id, names, target=target), facts)

    @routes.post("/instances/{id}/snapshots/{snapshot_id}/restore")
    async def restore_snapshot(
        id: str, snapshot_id: str, body: wire.RestoreSnapshot | None = None
    ) -> wire_instances.Instance:
        body = body or wire.RestoreSnapshot()
        target = to_target(body.target_state)
        instance = fleet.get(id).record.id
        # What its own snapshot is called may be the name of another instance's, too.
        own = snapshots.list(source=instance, name=snapshot_id)
        record = own[0] if own else snapshots.get(snapshot_id)
        hypervisor = to_target_hypervisor(body.target_hypervisor, record, facts)
        view = await snapshots.restore(instance, record.id, target=target, hypervisor=hypervisor)
        return to_instance(view, facts)
