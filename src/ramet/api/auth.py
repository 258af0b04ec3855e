"""Who may ask: every request over TCP carries a token, and the token says for what.

It stands in front of the whole application, so a route added tomorrow is closed before anybody thinks of it.
The unix socket needs none of this: its file mode decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

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


class TokenRefused(Exception):
    """The request carries no token we accept. `status` is 401 or 403."""

    def __init__(self, status: HTTPStatus, message: str, remedy: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.remedy = remedy


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

    def check(self, authorization: str | None, scope: str | None) -> str:
        """Return the subject of a request, by its header `authorization`.

        Args:
            scope: what the token must allow; None if any valid token will do.

        Raises:
            TokenRefused: the request is not allowed.
        """
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise TokenRefused(
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
            raise TokenRefused(
                HTTPStatus.UNAUTHORIZED, f"The token is not valid: {error}", "make a new one with ramet token"
            ) from error
        if scope is not None and not _allows(claims.get("permissions", [EVERYTHING]), scope):
            raise TokenRefused(
                HTTPStatus.FORBIDDEN,
                f"The token does not allow {scope}",
                f"make one that does with ramet token --scope {scope}",
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
    if resource == "instance":
        resource = _RESOURCE_BELOW.get("".join(path.split("/", 4)[3:4]), resource)
    if kind == "websocket" or (resource == "instance" and path.endswith("/archive")):
        return f"{resource}:write"
    return f"{resource}:{_ACTION_OF.get(method, 'write')}"


class RequireToken:
    """ASGI middleware that lets a request through to `app` only with a token that allows it."""

    def __init__(self, app: ASGIApp, *, auth: TokenAuth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket") or (kind == "http" and scope["path"] in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if kind == "websocket" and "origin" in headers:
                # Browsers say it and nobody else does; a page must not reach a guest with a borrowed token.
                raise TokenRefused(HTTPStatus.FORBIDDEN, "Browsers may not open this", "use the API's client")
            needed = scope_of(kind, scope.get("method", "GET"), scope["path"])
            scope[SUBJECT] = self._auth.check(headers.get("authorization"), needed)
        except TokenRefused as refused:
            realm = {"www-authenticate": "Bearer"} if refused.status == HTTPStatus.UNAUTHORIZED else {}
            response = answer(
                refused.status, refusal(refused.status, refused.message, refused.remedy), headers=realm
            )
            if kind == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(response)
            else:
                await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _allows(permissions: object, scope: str) -> bool:
    if not isinstance(permissions, Sequence) or isinstance(permissions, str):
        return False
    return EVERYTHING in permissions or scope in permissions
