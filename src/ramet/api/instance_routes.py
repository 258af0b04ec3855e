"""The calls on instances; each parses, asks the fleet and shows the answer."""

from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from ramet.api.asked import (
    check_create,
    check_name,
    check_update,
    tag_filter,
    to_changes,
    to_compression,
    to_pool_size,
    to_spec,
    to_start,
    to_state,
    to_target,
    to_wait_s,
)
from ramet.api.facts import HostFacts
from ramet.api.forks import answer_many, answer_one, check_source, names_of
from ramet.api.image_routes import find_or_pull
from ramet.api.mounts import to_mounts
from ramet.api.paging import Limit, Place, first_page, read_cursor
from ramet.api.ports import CatalogPort, FleetPort, LogSource, VolumesPort
from ramet.api.shown import to_instance
from ramet.api.stream import EventStream
from ramet.api.turns import JsonPieces, dump_in_turns
from ramet.core.spec import State
from ramet.core.volumes import demand_copyable
from ramet.images import parse_platform
from ramet.instance.fleet_types import InstanceView
from ramet.wire_api import instances as wire
from ramet.wire_api.errors import Error
from ramet.wire_api.pools import SetForkPool
from ramet.wire_api.snapshots import StandbyInstance

LOG_TAIL_LINES_MAX: Final = 100_000

_INSTANCES: Final = TypeAdapter(tuple[wire.Instance, ...])


def router(fleet: FleetPort, catalog: CatalogPort, volumes: VolumesPort, facts: HostFacts) -> APIRouter:
    """Return the routes on instances, without exec."""
    routes = APIRouter(prefix="/instances", tags=["instances"], responses={"default": {"model": Error}})
    _add_reading(routes, fleet, facts)
    _add_making(routes, fleet, catalog, volumes, facts)
    _add_lifecycle(routes, fleet, facts)
    _add_forks(routes, fleet, facts)
    return routes


def _add_reading(routes: APIRouter, fleet: FleetPort, facts: HostFacts) -> None:
    @routes.get("", response_model=tuple[wire.Instance, ...])
    async def list_instances(
        request: Request, state: str | None = None, limit: Limit = None, cursor: str | None = None
    ) -> Response:
        found = fleet.find(
            state=None if state is None else to_state(state),
            tags=tag_filter(request),
            after=read_cursor(cursor),
        )
        told = first_page(found, _place, limit)
        pieces = await dump_in_turns(_INSTANCES, told.items, lambda view: to_instance(view, facts))
        return JsonPieces(pieces, told.headers)

    @routes.get("/{id}")
    async def get_instance(id: str) -> wire.Instance:
        return to_instance(fleet.get(id), facts)

    @routes.get("/{id}/wait")
    async def wait_for_state(id: str, state: str, timeout: str | None = None) -> wire.WaitResult:
        outcome = await fleet.wait(id, to_state(state), to_wait_s(timeout))
        return wire.WaitResult(outcome.state.value, outcome.timed_out, outcome.state_error or None)

    @routes.get("/{id}/logs", response_class=EventStream, status_code=HTTPStatus.OK)
    async def stream_logs(
        id: str,
        tail: Annotated[int, Query(ge=0, le=LOG_TAIL_LINES_MAX)] = wire.LOG_TAIL_LINES_DEFAULT,
        follow: bool = False,
        source: LogSource = "app",
    ) -> Response:
        found = fleet.get(id)  # Before the answer begins: afterwards no status can be told.
        return EventStream(fleet.logs(found.record.id, source=source, tail=tail, follow=follow))


def _add_making(
    routes: APIRouter, fleet: FleetPort, catalog: CatalogPort, volumes: VolumesPort, facts: HostFacts
) -> None:
    @routes.post("", status_code=HTTPStatus.CREATED)
    async def create_instance(body: wire.CreateInstance) -> wire.Instance:
        check_create(body, facts)
        mounts = to_mounts(body.volumes or (), volumes, facts)
        if body.fork_pool:
            demand_copyable(mounts.volumes)
        image = await find_or_pull(catalog, body.image, parse_platform(facts.platform))
        spec = replace(
            to_spec(body, image, facts), volumes=mounts.volumes, overlay_parts=mounts.overlay_parts
        )
        return to_instance(await fleet.create(body.name, spec), facts)

    @routes.patch("/{id}")
    async def update_instance(id: str, body: wire.UpdateInstance) -> wire.Instance:
        check_update(body)
        found = fleet.get(id)
        changes = to_changes(body, found.record)
        return to_instance(await fleet.update(found.record.id, changes) if changes else found, facts)


def _add_lifecycle(routes: APIRouter, fleet: FleetPort, facts: HostFacts) -> None:
    @routes.post("/{id}/start")
    async def start_instance(id: str, body: wire.StartInstance | None = None) -> wire.Instance:
        entrypoint, cmd = to_start(body or wire.StartInstance())
        return to_instance(await fleet.start(id, entrypoint=entrypoint, cmd=cmd), facts)

    @routes.post("/{id}/stop")
    async def stop_instance(id: str) -> wire.Instance:
        return to_instance(await fleet.stop(id), facts)

    @routes.post("/{id}/standby")
    async def standby_instance(id: str, body: StandbyInstance | None = None) -> wire.Instance:
        body = body or StandbyInstance()
        ask = to_compression(body.compression, body.compression_delay)
        return to_instance(await fleet.standby(id, ask), facts)

    @routes.post("/{id}/restore")
    async def restore_instance(id: str) -> wire.Instance:
        return to_instance(await fleet.restore(id), facts)

    @routes.delete("/{id}", status_code=HTTPStatus.NO_CONTENT)
    async def delete_instance(id: str, graceful_shutdown: bool = False) -> None:
        found = fleet.get(id)
        if graceful_shutdown and found.record.state in (State.RUNNING, State.INITIALIZING):
            await fleet.stop(found.record.id)
        await fleet.delete(found.record.id)


def _add_forks(routes: APIRouter, fleet: FleetPort, facts: HostFacts) -> None:
    @routes.put("/{id}/fork_pool")
    async def set_fork_pool(id: str, body: SetForkPool) -> wire.Instance:
        return to_instance(await fleet.set_fork_pool(id, to_pool_size(body.size)), facts)

    @routes.post("/{id}/fork", status_code=HTTPStatus.CREATED)
    async def fork_instance(id: str, body: wire.ForkInstance) -> wire.Instance:
        check_name(body.name)
        target = to_target(body.target_state)
        source = fleet.get(id)
        check_source(source, from_running=body.from_running)
        return answer_one(await fleet.fork(source.record.id, [body.name], target=target), facts)

    @routes.post("/{id}/forks", status_code=HTTPStatus.CREATED, response_model=wire.ForkManyResult)
    async def fork_many(id: str, body: wire.ForkMany) -> Response:
        names, target = names_of(body), to_target(body.target_state)
        source = fleet.get(id)
        check_source(source, from_running=True)
        return answer_many(await fleet.fork(source.record.id, names, target=target), facts)


def _place(view: InstanceView) -> Place:
    return view.record.identity.created_at, view.record.id
