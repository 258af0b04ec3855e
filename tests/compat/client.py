"""The official client, looked at from outside: what it can call, and calls that look at every answer.

Each answer is read twice: by the client as its users have it, with its own check of the type, and strictly
from the text, where a number that is text, an enum's stranger or a missing field is an error.
"""

import inspect
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial, reduce
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal, get_origin, get_type_hints

import anyio.to_thread
import httpx
import hypeman
from hypeman import AsyncHypeman, Hypeman, lib
from hypeman._resource import AsyncAPIResource, SyncAPIResource
from hypeman._streaming import AsyncStream, Stream
from pydantic import BaseModel, TypeAdapter
from websockets.asyncio.client import unix_connect as unix_connect_async
from websockets.sync.client import unix_connect

Flavour = Literal["sync", "async"]
FLAVOURS: Final[tuple[Flavour, ...]] = ("sync", "async")
_OF_THE_REQUEST: Final = frozenset({"extra_headers", "extra_query", "extra_body", "timeout", "self"})
_OF_THE_CALLER: Final = frozenset({"client", "connector", "callbacks"})  # Of helpers.
TIMEOUT_S: Final = 120.0
_ASYNC: Final = "_async"


def methods(client: Hypeman | AsyncHypeman) -> dict[str, Callable[..., Any]]:
    """Return every method of every resource of `client` by its name, such as "instances.snapshots.create"."""
    found: dict[str, Callable[..., Any]] = {}
    for name in _public(client):
        with suppress(hypeman.HypemanError):
            member = getattr(client, name)
            if isinstance(member, SyncAPIResource | AsyncAPIResource):
                found |= dict(_methods_of(member, name))
    return found


def _methods_of(
    resource: SyncAPIResource | AsyncAPIResource, path: str
) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in _public(resource):
        member = getattr(resource, name)
        if isinstance(member, SyncAPIResource | AsyncAPIResource):
            yield from _methods_of(member, f"{path}.{name}")
        elif inspect.ismethod(member):
            yield f"{path}.{name}", member


def _public(found: object) -> list[str]:
    return [name for name in dir(type(found)) if not name.startswith(("_", "with_"))]


def helpers() -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Return the client's functions that speak over WebSockets, by name: how to call it, and awaited."""
    functions = {name: getattr(lib, name) for name in lib.__all__ if inspect.isfunction(getattr(lib, name))}
    plain = [name for name in functions if not name.endswith(_ASYNC)]
    return {f"lib.{name}": (functions[name], functions[name + _ASYNC]) for name in plain}


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return what a method, or a helper, can be told of the call itself."""
    beside = _OF_THE_CALLER if inspect.isfunction(function) else _OF_THE_REQUEST
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in beside
    }


def answer_type(function: Callable[..., Any]) -> Any:
    """Return the type of what a method returns; of a stream the stream's."""
    return get_type_hints(function)["return"]


class Calls:
    """Calls by name, one way or the other.

    Attributes:
        used: the parameters that were given, by method.
        untold: fields of the client's models that an answer did not have, by the model's name.
    """

    def __init__(self, flavour: Flavour, url: str, token: str, socket: Path | None = None) -> None:
        """Have a client of the server at `url`, or on the unix socket `socket`."""
        self.used: dict[str, set[str]] = defaultdict(set)
        self.untold: dict[str, set[str]] = {}
        options: dict[str, Any] = {
            "base_url": url,
            "api_key": token,
            "max_retries": 0,
            "_strict_response_validation": True,
        }
        self._socket = path = None if socket is None else str(socket)
        if flavour == "sync":
            plain = httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=TIMEOUT_S)
            self._client: Hypeman | AsyncHypeman = Hypeman(http_client=plain, **options)
        else:
            awaited = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path), timeout=TIMEOUT_S)
            self._client = AsyncHypeman(http_client=awaited, **options)

    async def aclose(self) -> None:
        if isinstance(self._client, AsyncHypeman):
            await self._client.close()
        else:
            self._client.close()

    async def __call__(self, method: str, **arguments: Any) -> Any:
        """Make a call and return what the client makes of the answer; of a stream, all its events.

        Raises:
            hypeman.APIError: it was refused, or answered in a form that the client does not take.
        """
        self.used[method] |= arguments.keys()
        *path, name = method.split(".")
        if path == ["lib"]:
            return await self._help(method, arguments)
        resource = reduce(getattr, path, self._client)
        function = getattr(resource, name)
        kind = answer_type(function)
        if get_origin(kind) in (Stream, AsyncStream):
            return await self._read(function, arguments)
        raw = await self._run(getattr(resource.with_raw_response, name), arguments)
        text = raw.http_response.text
        if kind is type(None):
            assert (raw.http_response.status_code, text) == (HTTPStatus.NO_CONTENT, "")
            return None
        parsed = raw.parse()
        if inspect.isawaitable(parsed):
            parsed = await parsed
        assert TypeAdapter(kind).validate_json(text, strict=True) == parsed
        self._note(parsed, json.loads(text))
        return parsed

    async def _run(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if isinstance(self._client, AsyncHypeman):
            return await function(**arguments)
        return await anyio.to_thread.run_sync(partial(function, **arguments))

    async def _read(self, function: Callable[..., Any], arguments: dict[str, Any]) -> list[Any]:
        stream = await self._run(function, arguments)
        if isinstance(stream, AsyncStream):
            return [event async for event in stream]
        return await anyio.to_thread.run_sync(lambda: list(stream))

    async def _help(self, method: str, arguments: dict[str, Any]) -> Any:
        plain, awaited = helpers()[method]
        is_async = isinstance(self._client, AsyncHypeman)
        if self._socket is not None:  # They know of TCP only.
            connect = unix_connect_async if is_async else unix_connect
            arguments = {**arguments, "connector": partial(connect, self._socket)}
        return await self._run(partial(awaited if is_async else plain, self._client), arguments)

    def _note(self, parsed: object, told: Any) -> None:
        """Remember which fields of the client's models were not there, however deep."""
        if isinstance(parsed, BaseModel):
            model = type(parsed)
            missing = model.model_fields.keys() - told.keys()
            self.untold[model.__name__] = self.untold.get(model.__name__, set()) | missing
            for name in model.model_fields.keys() & told.keys():
                self._note(getattr(parsed, name), told[name])
        elif isinstance(parsed, list):
            for each, text in zip(parsed, told, strict=True):
                self._note(each, text)
