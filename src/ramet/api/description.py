"""The API's description of itself: OpenAPI, where every call says how its errors look."""

from typing import Any, Final

from fastapi import FastAPI

from ramet.api.links import add_links

_ERROR: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}

_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A request with a key is done once, however often it is sent; see the guide.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}


class Described(FastAPI):
    """An app whose document gives errors their own content type, also where success is no JSON.

    And it says what every POST takes besides its own parameters: middleware, which no route knows of.
    """

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for method, operation in operations.items():
                    operation["responses"]["default"]["content"] = _ERROR
                    if method == "post":
                        operation.setdefault("parameters", []).append(_KEY)
            add_links(document)
        assert self.openapi_schema is not None
        return self.openapi_schema
