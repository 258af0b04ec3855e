"""Who may ask: every request over TCP carries a token, and the token says for what.

It stands in front of the whole application, so a route added tomorrow is closed before anybody thinks of it.
On the unix socket, the user at its other end stands for the token: `ramet.api.peers`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

import jwt
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from ramet.api.errors import answer, refusal
from ramet.core.errors import Invalid
from ramet.wire_api.scopes import ALGORITHM, EVERYTHING, SECRET_BYTES_MIN

SUBJECT: Final = "ramet.subject"
"""Where in an ASGI scope it stands who asks."""
OPEN_PATHS: Final = frozenset({"/health", "/spec.json", "/spec.yaml", "/swagger"})
LEEWAY_S: Final = 5  # Between clocks.

_RESOURCE_OF: Final[Mapping[str, str]] = {
    "instances": "instance",
    "images": "image",
    "volumes": "volume",
    "snapshots": "snapshot",
    "builds": "build",
    "builders": "build",
    "pushes": "image",
    "devices": "device",
    "ingresses": "ingress",
    "resources": "resource",
    "metrics": "resource",
}
_RESOURCE_BELOW: Final[Mapping[str, str]] = {
    "snapshots": "snapshot",
    "snapshot-schedule": "snapshot",
}
"""What of an instance has scopes of its own: the part of a path behind `/instances/{id}/`."""
_ACTION_OF: Final[Mapping[str, str]] = {"GET": "read", "HEAD": "read", "DELETE": "delete"}


class WeakSecret(Invalid):
    """The secret that signs tokens is too short to be one."""

    code = "weak_secret"


class Refused(Exception):
    """Whoever asks is not let in. `status` is 401 or 403; `scope` is what would have to be allowed."""

    def __init__(self, status: HTTPStatus, message: str, remedy: str, scope: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.remedy = remedy
        self.scope = scope


class Auth(Protocol):
    """Knows who may ask for what."""

    def admit(self, scope: Scope, needed: str | None) -> str:
        """Return who sends a request, or opens a WebSocket.

        Args:
            needed: the scope that must be allowed; None if it is enough to be known.

        Raises:
            Refused: the request is not allowed.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """Accepts tokens (JWT, HS256) signed with `secret`, of at least 32 bytes.

    Raises:
        WeakSecret: it is shorter.
    """

    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret.encode()) < SECRET_BYTES_MIN:
            raise WeakSecret(
                f"The token secret is shorter than {SECRET_BYTES_MIN} bytes",
                remedy="make one with: openssl rand -hex 32",
            )

    def admit(self, scope: Scope, needed: str | None) -> str:
        """Return the subject of the token in the header `authorization`; see `Auth`."""
        headers = Headers(scope=scope)
        if scope["type"] == "websocket" and "origin" in headers:
            # Browsers say it and nobody else does; a page must not reach a guest with a borrowed token.
            raise Refused(HTTPStatus.FORBIDDEN, "Browsers may not open this", "use the API's client")
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "The request carries no token",
                "send 'Authorization: Bearer TOKEN'; ramet token makes one",
            )
        try:
            claims = jwt.decode(
                token.strip(),
                self.secret,
                algorithms=[ALGORITHM],
                leeway=LEEWAY_S,
                options={"require": ["sub", "exp"]},
            )
        except jwt.InvalidTokenError as error:
            raise Refused(
                HTTPStatus.UNAUTHORIZED, f"The token is not valid: {error}", "make a new one with ramet token"
            ) from error
        if needed is not None and not allows(claims.get("permissions", [EVERYTHING]), needed):
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"The token does not allow {needed}",
                f"make one that does with ramet token --scope '{needed}'",
                needed,
            )
        return str(claims["sub"])


def scope_of(kind: str, method: str, path: str) -> str | None:
    """Return the scope that a request needs, None for any valid token, "*" where nothing less will do.

    Args:
        kind: "http" or "websocket"; what goes over a WebSocket acts on a guest, and so do archives.
    """
    first = path.split("/", 2)[1] if path.startswith("/") else ""
    if first == "capabilities":
        return None
    resource = _RESOURCE_OF.get(first)
    if resource is None:
        return EVERYTHING
    below = "".join(path.split("/", 4)[3:4]) if resource == "instance" else ""
    resource = _RESOURCE_BELOW.get(below, resource)
    if kind == "websocket" or (resource == "instance" and (path.endswith("/archive") or below == "volumes")):
        return f"{resource}:write"  # What is taken from an instance changes it, and deletes nothing.
    return f"{resource}:{_ACTION_OF.get(method, 'write')}"


class Guard:
    """ASGI middleware that lets a request through to `app` only if `auth` allows it."""

    def __init__(self, app: ASGIApp, *, auth: Auth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket") or (kind == "http" and scope["path"] in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        try:
            needed = scope_of(kind, scope.get("method", "GET"), scope["path"])
            scope[SUBJECT] = self._auth.admit(scope, needed)
        except Refused as refused:
            realm = {"www-authenticate": "Bearer"} if refused.status == HTTPStatus.UNAUTHORIZED else {}
            fields = None if refused.scope is None else {"scope": refused.scope}
            told = refusal(refused.status, refused.message, refused.remedy, fields)
            response = answer(refused.status, told, headers=realm)
            if kind == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(response)
            else:
                await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def allows(permissions: object, scope: str) -> bool:
    """Tell whether a list of scopes allows one; what is no list allows nothing."""
    if not isinstance(permissions, Sequence) or isinstance(permissions, str):
        return False
    return EVERYTHING in permissions or scope in permissions
