"""The API's description of itself: OpenAPI, where every call says how its errors look."""

from typing import Any, Final

from fastapi import FastAPI

from ramet.api.auth import OPEN_PATHS, scope_of
from ramet.api.links import add_links, operations_of

_ERROR: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}

_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A request with a key is done once, however often it is sent; see the guide.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}


_TAGS: Final = {
    "name": "tags",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "description": "tags[key]=value, as often as there are tags; all of them count.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}
_TAGGED: Final = frozenset(
    {
        ("/instances", "get"),
        ("/images", "get"),
        ("/volumes", "get"),
        ("/snapshots", "get"),
        ("/volumes/from-archive", "post"),
    }
)
"""Calls that read tags from their query, whose names nobody knows before."""
_TOKEN: Final = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "Of `ramet token`: it lists scopes, or allows everything. The unix socket needs none.",
}
DESCRIPTION: Final = "microVMs of OCI images on one host, and forks of those that run."


class Described(FastAPI):
    """An app whose document gives errors their own content type, also where success is no JSON.

    And it says what stands around the routes, which they do not know of: tokens with their scopes, keys of
    POSTs, and tags in queries.
    """

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path, method, operation in operations_of(document):
                operation["responses"]["default"]["content"] = _ERROR
                operation["security"] = _security(method, path)
                if method == "post":
                    operation.setdefault("parameters", []).append(_KEY)
                if (path, method) in _TAGGED:
                    operation.setdefault("parameters", []).append(_TAGS)
            document["components"]["securitySchemes"] = {"token": _TOKEN}
            add_links(document)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _security(method: str, path: str) -> list[dict[str, list[str]]]:
    """Return what a call needs: nothing, any token, or one that allows a scope."""
    if path in OPEN_PATHS:
        return []
    scope = scope_of("http", method.upper(), path)
    return [{"token": [] if scope is None else [scope]}]
