"""What the official client can call and this server does not do yet: 501, with the call's name.

Telling "not yet" from "no such thing" spares a user the search for a typing error. A row goes when its call
comes; a test holds the table against the client.
"""

from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ramet.core.errors import Unsupported

_LATER: Final = "it will come with a later version"

UNSUPPORTED: Final[tuple[tuple[str, str, str], ...]] = (
    ("GET", "/devices", "devices.list"),
    ("POST", "/devices", "devices.create"),
    ("GET", "/devices/available", "devices.list_available"),
    ("GET", "/devices/{id}", "devices.retrieve"),
    ("DELETE", "/devices/{id}", "devices.delete"),
    ("GET", "/ingresses", "ingresses.list"),
    ("POST", "/ingresses", "ingresses.create"),
    ("GET", "/ingresses/{id}", "ingresses.get"),
    ("DELETE", "/ingresses/{id}", "ingresses.delete"),
    ("GET", "/builds", "builds.list"),
    ("POST", "/builds", "builds.create"),
    ("GET", "/builds/{id}", "builds.get"),
    ("DELETE", "/builds/{id}", "builds.cancel"),
    ("GET", "/builds/{id}/events", "builds.events"),
    ("GET", "/builders", "builders.list"),
    ("POST", "/builders", "builders.create"),
    ("GET", "/builders/{id}", "builders.get"),
    ("DELETE", "/builders/{id}", "builders.delete"),
    ("POST", "/builders/{id}/prune", "builders.prune"),
    ("GET", "/pushes", "pushes.list"),
    ("POST", "/pushes", "pushes.create"),
    ("GET", "/pushes/{id}", "pushes.get"),
)
"""Method, path and name in the official client."""


def refusal_of(name: str) -> Unsupported:
    """Return the error that says `name` cannot be done yet."""
    return Unsupported(f"{name} is not supported yet", remedy=_LATER, operation=name)


def router() -> APIRouter:
    """Return the routes of all rows."""
    routes = APIRouter()
    for method, path, name in UNSUPPORTED:
        routes.add_api_route(path, _refuse(name), methods=[method], include_in_schema=False)
    return routes


def _refuse(name: str) -> Any:
    # Takes the bare request: its body is not read, whatever its size and kind.
    async def refuse(_: Request) -> Response:
        raise refusal_of(name)

    return refuse
