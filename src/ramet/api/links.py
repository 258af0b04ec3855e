"""Links in the API's description: what can be asked of a thing that an answer has brought.

They are found, not written: wherever a call answers with one new thing, it leads to every call whose path
names such a thing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class _Kind:
    schema: str
    path: str
    parameter: str


_KINDS: Final = (
    _Kind("Instance", "/instances/{id}", "id"),
    _Kind("Snapshot", "/snapshots/{snapshot_id}", "snapshot_id"),
    _Kind("Volume", "/volumes/{id}", "id"),
)
_OPERATIONS: Final = frozenset({"get", "put", "post", "patch", "delete"})


def add_links(document: dict[str, Any]) -> None:
    """Add to an OpenAPI document the links of all answers that bring a new instance, snapshot or volume."""
    links = document.setdefault("components", {}).setdefault("links", {})
    for kind in _KINDS:
        found = dict(_links_to(document, kind))
        links |= found
        refs = {name: {"$ref": f"#/components/links/{name}"} for name in found}
        for _, _, operation in operations_of(document):
            created = operation["responses"].get(str(HTTPStatus.CREATED.value))
            if created is not None and _schema_of(created) == kind.schema:
                created["links"] = dict(refs)


def _links_to(document: Mapping[str, Any], kind: _Kind) -> Iterator[tuple[str, Any]]:
    for path, _, operation in operations_of(document):
        if path == kind.path or path.startswith(f"{kind.path}/"):
            name = operation["operationId"]
            yield name, {"operationId": name, "parameters": {f"path.{kind.parameter}": "$response.body#/id"}}


def operations_of(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield path, method and description of each call of an OpenAPI document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in _OPERATIONS:
                yield path, method, operation


def _schema_of(response: Mapping[str, Any]) -> str:
    """Return the name of the schema of a JSON answer; empty if it has none of its own."""
    reference: str = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    return reference.rpartition("/")[2]
