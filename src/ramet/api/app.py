"""The application: every route, behind what every request must pass.

The daemon makes it twice over the same fleet, once for TCP with `auth` and once for the unix socket without.
"""

from collections.abc import MutableMapping
from typing import Any, Final

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ramet.api import (
    auto_standby,
    exec_routes,
    files_routes,
    image_routes,
    instance_routes,
    reclaim,
    resource_routes,
    schedules,
    snapshot_routes,
    system_routes,
    unsupported,
    volume_routes,
)
from ramet.api.archives import is_archive
from ramet.api.auth import RequireToken, TokenAuth
from ramet.api.description import Described
from ramet.api.errors import install
from ramet.api.facts import HostFacts
from ramet.api.idempotency import Idempotency, KeptAnswers
from ramet.api.ports import (
    CatalogPort,
    FleetPort,
    IdlePort,
    ReclaimPort,
    ResourcesPort,
    SchedulesPort,
    SnapshotsPort,
    VolumesPort,
)
from ramet.api.request_id import NameRequests
from ramet.api.strict_json import check_body
from ramet.instance.held_exec import HeldExecs
from ramet.wire_api.errors import Error
from ramet.wire_api.instances import API_VERSION

REQUEST_BYTES_MAX: Final = 1 << 20


class LimitBody:
    """ASGI middleware that refuses to read more than `REQUEST_BYTES_MAX` of a request's body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_archive(scope):
            await self._app(scope, receive, send)
            return
        received_bytes = 0

        async def receive_limited() -> MutableMapping[str, Any]:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > REQUEST_BYTES_MAX:
                raise HTTPException(413, f"the body is larger than {REQUEST_BYTES_MAX} bytes")
            return message

        await self._app(scope, receive_limited, send)


def create_app(
    fleet: FleetPort,
    catalog: CatalogPort,
    snapshots: SnapshotsPort,
    volumes: VolumesPort,
    resources: ResourcesPort,
    idle: IdlePort,
    scheduled: SchedulesPort,
    reclaims: ReclaimPort,
    facts: HostFacts,
    *,
    answers: KeptAnswers,
    execs: HeldExecs,
    auth: TokenAuth | None,
) -> FastAPI:
    """Return the API over `fleet`, `catalog`, `snapshots`, `volumes`, the host's `resources`, and what goes
    by itself: `idle` instances, `scheduled` snapshots, and what `reclaims` memory.

    Args:
        answers: what requests that may be sent again were answered; of all apps over one fleet.
        execs: the commands whose clients may leave; likewise.
        auth: checks the token of every request; None trusts whoever can connect.
    """
    app = Described(
        title="ramet",
        version=API_VERSION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(check_body)],
        responses={"default": {"model": Error, "description": "What went wrong"}},
    )
    install(app)
    app.include_router(system_routes.router(app, facts))
    app.include_router(resource_routes.router(fleet, resources))
    app.include_router(reclaim.router(reclaims))
    # Before the images: a name may hold slashes, and its route would take their calls.
    app.include_router(unsupported.router())
    app.include_router(instance_routes.router(fleet, catalog, volumes, facts))
    app.include_router(auto_standby.router(idle))
    app.include_router(snapshot_routes.router(fleet, snapshots, facts))
    app.include_router(schedules.router(scheduled))
    app.include_router(volume_routes.router(fleet, volumes, facts))
    app.include_router(image_routes.router(fleet, catalog, snapshots))
    app.include_router(exec_routes.router(fleet, execs))
    app.include_router(files_routes.router(fleet))
    app.add_middleware(Idempotency, answers=answers)  # Each goes around those before it.
    app.add_middleware(LimitBody)
    if auth is not None:
        app.add_middleware(RequireToken, auth=auth)
    app.add_middleware(NameRequests)
    return app
