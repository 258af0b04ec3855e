"""The application: every route, behind what every request must pass.

The daemon makes it twice over the same fleet: once for TCP, where a token is asked for, and once for the unix
socket, where it is the user that counts.
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
from ramet.api.auth import Auth, Guard
from ramet.api.description import DESCRIPTION, Described
from ramet.api.errors import install, no_such_path
from ramet.api.idempotency import Idempotency
from ramet.api.parts import Parts
from ramet.api.request_id import NameRequests
from ramet.api.strict_json import check_body
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


def create_app(parts: Parts, *, auth: Auth | None) -> FastAPI:
    """Return the API over `parts`.

    Args:
        auth: knows who may ask for what; None trusts whoever can connect.
    """
    fleet, facts = parts.fleet, parts.facts
    app = Described(
        title="ramet",
        version=API_VERSION,
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(check_body)],
        responses={"default": {"model": Error, "description": "What went wrong"}},
    )
    install(app)
    app.router.default = no_such_path(app)
    app.include_router(system_routes.router(app, facts))
    app.include_router(resource_routes.router(fleet, parts.resources))
    app.include_router(reclaim.router(parts.reclaims))
    # Before the images: a name may hold slashes, and its route would take their calls.
    app.include_router(unsupported.router())
    app.include_router(instance_routes.router(fleet, parts.images, parts.volumes, facts))
    app.include_router(auto_standby.router(parts.idle))
    app.include_router(snapshot_routes.router(fleet, parts.snapshots, facts))
    app.include_router(schedules.router(parts.schedules))
    app.include_router(volume_routes.router(fleet, parts.volumes, facts))
    app.include_router(image_routes.router(fleet, parts.images, parts.snapshots))
    app.include_router(exec_routes.router(fleet, parts.execs))
    app.include_router(files_routes.router(fleet))
    app.add_middleware(Idempotency, answers=parts.answers)  # Each goes around those before it.
    app.add_middleware(LimitBody)
    if auth is not None:
        app.add_middleware(Guard, auth=auth)
    app.add_middleware(NameRequests)
    return app
