"""From errors to answers: the one table of status codes, and the one place that logs what went wrong.

A broken host is logged with its cause; everything else is the caller's to read. Official clients send a
request again after 409 and 5xx, which would fork or create twice, so every answer that the same request
will meet again says `x-should-retry: false`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from ramet.api.request_id import HEADER, request_id
from ramet.api.strict_json import WrongContentType
from ramet.core.errors import Broken, Conflict, Exhausted, Invalid, NotFound, RametError, Unsupported
from ramet.images.errors import RegistryBusy
from ramet.wire_api.errors import Error, ErrorDetail

STATUS: Final[Mapping[type[RametError], HTTPStatus]] = {
    Invalid: HTTPStatus.BAD_REQUEST,
    WrongContentType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    Exhausted: HTTPStatus.CONFLICT,
    RegistryBusy: HTTPStatus.TOO_MANY_REQUESTS,
    Unsupported: HTTPStatus.NOT_IMPLEMENTED,
    Broken: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The status of each kind of error; a narrower class has that of the nearest kind above it."""

CODE: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    HTTPStatus.UPGRADE_REQUIRED: "upgrade_required",
}
"""Codes of what Starlette and the authentication refuse."""

MESSAGE_LENGTH_MAX: Final = 500  # A sentence; also of each text among the fields.
PLACE_LENGTH_MAX: Final = 60  # Of each part of a field's name that we repeat.
DETAIL_COUNT_MAX: Final = 20

_SOURCES: Final = frozenset({"body", "query", "path", "header"})
"""Where pydantic finds a field, which it tells before the field's name."""
_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")
_DESCRIPTION: Final = "GET /spec.json describes every call and field"
_ERROR: Final = TypeAdapter(Error)
_log = structlog.get_logger(__name__)


def status_of(error: RametError) -> HTTPStatus:
    """Return the status that `error` is answered with."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def to_wire(error: RametError) -> Error:
    """Return `error` as the API tells it."""
    return Error(
        code=error.code,
        message=one_line(error.message),
        remedy=one_line(error.remedy) or (_DESCRIPTION if type(error) is Invalid else None),
        fields={name: _plain(value) for name, value in error.fields.items()} or None,
    )


def one_line(text: str) -> str:
    """Return `text` as one printable line of bounded length: it may repeat what a stranger sent."""
    shown = text[: MESSAGE_LENGTH_MAX + 1]
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)
    return line if len(line) <= MESSAGE_LENGTH_MAX else line[: MESSAGE_LENGTH_MAX - 1] + "…"


def error_body(error: Error) -> dict[str, Any]:
    """Return `error` as JSON-able values, with the name of the request that it ended."""
    body: dict[str, Any] = _ERROR.dump_python(replace(error, request_id=request_id()), mode="json")
    return body


def answer(
    status: int, error: Error, *, may_retry: bool = False, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the answer that carries `error`."""
    name = request_id()
    named = {} if name is None else {HEADER: name}
    retry = {} if may_retry else {"x-should-retry": "false"}
    return JSONResponse(error_body(error), status_code=status, headers={**named, **retry, **(headers or {})})


def answer_to(error: RametError) -> JSONResponse:
    """Return the answer to a request that `error` ended, and log it if it is the host's fault."""
    status = status_of(error)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED:
        _log.error("request_failed", request_id=request_id(), code=error.code, exc_info=error)
    wait_s = error.fields.get("retry_after_s")
    headers = {"retry-after": str(math.ceil(wait_s))} if isinstance(wait_s, int | float) else None
    return answer(status, to_wire(error), may_retry=isinstance(error, Exhausted), headers=headers)


def refusal(
    status: int, message: str, remedy: str | None = None, fields: Mapping[str, Any] | None = None
) -> Error:
    """Return the error for a `status` that no class of ours stands for."""
    code = CODE.get(status, "bad_request")
    return Error(code=code, message=message, remedy=remedy or _DESCRIPTION, fields=fields)


def invalid(problems: Sequence[Mapping[str, Any]]) -> Error:
    """Return the error for a request that pydantic refused, `problems` as it lists them."""
    details = tuple(_detail(problem) for problem in problems[:DETAIL_COUNT_MAX])
    return Error(
        code=Invalid.code,
        message=details[0].message if details else "The request is invalid",
        details=details,
        remedy=_DESCRIPTION,
    )


def install(app: FastAPI) -> None:
    """Make `app` answer every failure in our form."""

    async def on_ramet_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RametError)
        return answer_to(error)

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(HTTPStatus.BAD_REQUEST, invalid(error.errors()))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = one_line(f"{request.method} {request.url.path}: {error.detail}")
        headers = error.headers
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"allow": ", ".join(_methods_of(app, request))}
        return answer(error.status_code, refusal(error.status_code, message), headers=headers)

    async def on_bug(_: Request, error: Exception) -> JSONResponse:
        # The server logs it with its traceback when it sees it pass.
        text = f"The server failed unexpectedly: {type(error).__name__}"
        return answer(HTTPStatus.INTERNAL_SERVER_ERROR, Error(code=Broken.code, message=text))

    app.add_exception_handler(RametError, on_ramet_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


def no_such_path(app: FastAPI) -> ASGIApp:
    """Return what answers where `app` has no such path, or has it only for a WebSocket."""
    otherwise = app.router.default

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            message = one_line(f"There is no WebSocket {scope['path']}")
            refused = answer(HTTPStatus.NOT_FOUND, refusal(HTTPStatus.NOT_FOUND, message))
            await WebSocket(scope, receive, send).send_denial_response(refused)
            return
        upgraded = {**scope, "type": "websocket"}
        if any(route.matches(upgraded)[0] is Match.FULL for route in app.routes):
            text = "This is a WebSocket"
            raise HTTPException(HTTPStatus.UPGRADE_REQUIRED, text, headers={"upgrade": "websocket"})
        await otherwise(scope, receive, send)

    return refuse


def _methods_of(app: FastAPI, request: Request) -> list[str]:
    """Return what can be done to the path of a request; Starlette tells of the first route only."""

    def is_taken(method: str) -> bool:
        asked = {**request.scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in app.routes)

    return [method for method in _METHODS if is_taken(method)]


def _detail(problem: Mapping[str, Any]) -> ErrorDetail:
    source, *parts = problem["loc"] or ("",)
    if source not in _SOURCES:
        parts = [source, *parts]
    field = one_line(".".join(str(part)[:PLACE_LENGTH_MAX] for part in parts))
    kind = str(problem["type"])
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return ErrorDetail("unknown_field", f"There is no field {field!r}", field)
    if kind == "missing" and not field:
        return ErrorDetail("missing_body", "The body is missing")
    if kind == "missing":
        return ErrorDetail("missing_field", f"The field {field!r} is missing", field)
    if kind == "json_invalid":
        return ErrorDetail("invalid_json", "The body is not JSON")
    what = f"{field!r}" if field else "The body"
    return ErrorDetail("invalid_field", one_line(f"{what}: {problem['msg']}"), field or None)


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return one_line(str(value))
    if value is None or isinstance(value, int | float | bool):
        return value
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return {one_line(str(name)): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(member) for member in value]
    return one_line(str(value))
