"""The calls on instances; each parses, asks the fleet and shows the answer."""

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from ramet.api.errors import answer, status_of, to_wire
from ramet.api.facts import HostFacts
from ramet.api.image_routes import find_or_pull
from ramet.api.ports import CatalogPort, FleetPort, LogSource
from ramet.api.stream import EventStream
from ramet.api.types import (
    check_create,
    check_name,
    to_fork_result,
    to_instance,
    to_spec,
    to_start,
    to_state,
    to_wait_s,
)
from ramet.core.errors import Invalid, RametError, Unsupported
from ramet.core.spec import State
from ramet.images import parse_platform
from ramet.instance import remedies
from ramet.instance.fleet_types import InstanceView, WrongState
from ramet.wire_api import instances as wire
from ramet.wire_api.errors import Error

LOG_TAIL_LINES_MAX: Final = 100_000

_INSTANCES: Final = TypeAdapter(tuple[wire.Instance, ...])
_FORKS: Final = TypeAdapter(wire.ForkManyResult)
_JSON: Final = "application/json"
_FORKABLE_LATER: Final = frozenset({State.STOPPED, State.STANDBY})


def router(fleet: FleetPort, catalog: CatalogPort, facts: HostFacts) -> APIRouter:
    """Return the routes on instances, without exec."""
    routes = APIRouter(prefix="/instances", tags=["instances"], responses={"default": {"model": Error}})
    _add_reading(routes, fleet, facts)
    _add_lifecycle(routes, fleet, catalog, facts)
    _add_forks(routes, fleet, facts)
    return routes


def _add_reading(routes: APIRouter, fleet: FleetPort, facts: HostFacts) -> None:
    @routes.get("", response_model=tuple[wire.Instance, ...])
    async def list_instances(request: Request, state: str | None = None) -> Response:
        wanted = None if state is None else to_state(state)
        tags = _tag_filter(request)
        shown = tuple(to_instance(view, facts) for view in fleet.list() if _matches(view, wanted, tags))
        # Written out by pydantic itself: a list of a thousand must not hold up the loop.
        return Response(_INSTANCES.dump_json(shown), media_type=_JSON)

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


def _add_lifecycle(routes: APIRouter, fleet: FleetPort, catalog: CatalogPort, facts: HostFacts) -> None:
    @routes.post("", status_code=HTTPStatus.CREATED)
    async def create_instance(body: wire.CreateInstance) -> wire.Instance:
        check_create(body, facts)
        image = await find_or_pull(catalog, body.image, parse_platform(facts.platform))
        return to_instance(await fleet.create(body.name, to_spec(body, image, facts)), facts)

    @routes.post("/{id}/start")
    async def start_instance(id: str, body: wire.StartInstance | None = None) -> wire.Instance:
        entrypoint, cmd = to_start(body or wire.StartInstance())
        return to_instance(await fleet.start(id, entrypoint=entrypoint, cmd=cmd), facts)

    @routes.post("/{id}/stop")
    async def stop_instance(id: str) -> wire.Instance:
        return to_instance(await fleet.stop(id), facts)

    @routes.delete("/{id}", status_code=HTTPStatus.NO_CONTENT)
    async def delete_instance(id: str, graceful_shutdown: bool = False) -> None:
        found = fleet.get(id)
        if graceful_shutdown and found.record.state in (State.RUNNING, State.INITIALIZING):
            await fleet.stop(found.record.id)
        await fleet.delete(found.record.id)


def _add_forks(routes: APIRouter, fleet: FleetPort, facts: HostFacts) -> None:
    @routes.post("/{id}/fork", status_code=HTTPStatus.CREATED)
    async def fork_instance(id: str, body: wire.ForkInstance) -> wire.Instance:
        check_name(body.name)
        source = fleet.get(id)
        _check_fork(source, body)
        (outcome,) = await fleet.fork(source.record.id, [body.name])
        if outcome.error is not None:
            raise outcome.error
        assert outcome.view is not None
        return to_instance(outcome.view, facts, outcome.timings_ms)

    @routes.post("/{id}/forks", status_code=HTTPStatus.CREATED, response_model=wire.ForkManyResult)
    async def fork_many(id: str, body: wire.ForkMany) -> Response:
        if not 1 <= body.count <= wire.FORK_COUNT_MAX:
            raise Invalid(
                f"count is {body.count}, and must be from 1 to {wire.FORK_COUNT_MAX}", field="count"
            )
        names = [f"{body.name_prefix}-{number}" for number in range(1, body.count + 1)]
        check_name(names[-1])
        source = fleet.get(id)
        _check_fork(source, wire.ForkInstance(names[0], from_running=True))
        outcomes = await fleet.fork(source.record.id, names)
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        if len(errors) == len(outcomes):
            return _all_failed(errors)
        results = tuple(to_fork_result(outcome, facts) for outcome in outcomes)
        result = wire.ForkManyResult(results, len(outcomes) - len(errors))
        return Response(_FORKS.dump_json(result), status_code=HTTPStatus.CREATED, media_type=_JSON)


def _all_failed(errors: list[RametError]) -> Response:
    first = to_wire(errors[0])
    message = f"None of the {len(errors)} forks could be made; the first: {first.message}"
    error = Error(first.code, message, first.details, first.inner_error, first.remedy, first.fields)
    return answer(status_of(errors[0]), error)


def _check_fork(source: InstanceView, body: wire.ForkInstance) -> None:
    """Raise what forbids to fork `source` so."""
    name, state = source.record.name, source.record.state
    target = None if body.target_state is None else to_state(body.target_state)
    if state in _FORKABLE_LATER:
        raise Unsupported(
            f"fork from {state} is not supported yet", remedy="fork it while it runs", operation="fork"
        )
    if state is not State.RUNNING:
        raise WrongState(
            f"{name} is {state}, and only a running instance can be forked",
            remedy=remedies.to_run(source.record),
            state=state.value,
        )
    if not body.from_running:
        raise WrongState(
            f"{name} is Running, and the request does not allow to fork it so",
            remedy="set from_running to true; the source goes on running",
            state=state.value,
        )
    if target not in (None, State.RUNNING):
        raise Unsupported(
            f"fork to {target} is not supported yet", remedy="leave out target_state", field="target_state"
        )


def _tag_filter(request: Request) -> dict[str, str]:
    """Return the tags asked for as `tags[key]=value`."""
    pairs = request.query_params.multi_items()
    return {key[5:-1]: value for key, value in pairs if key.startswith("tags[") and key.endswith("]")}


def _matches(view: InstanceView, state: State | None, tags: dict[str, str]) -> bool:
    record = view.record
    return (state is None or record.state is state) and tags.items() <= record.spec.tags.items()
