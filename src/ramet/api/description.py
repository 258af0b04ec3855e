"""The API's description of itself: OpenAPI, where every call says how its errors look."""

from typing import Any, Final

from fastapi import FastAPI

_ERROR: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}


class Described(FastAPI):
    """An app whose document gives errors their own content type, also where success is no JSON."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"]["default"]["content"] = _ERROR
        assert self.openapi_schema is not None
        return self.openapi_schema
