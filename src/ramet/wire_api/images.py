"""Images as the API shows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Image:
    """One name of an image. `size_bytes` is of its root disk; `created_at` in RFC 3339."""

    name: str
    digest: str
    status: str
    created_at: str
    size_bytes: int | None = None
    platform: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: Mapping[str, str] | None = None
    working_dir: str | None = None
    tags: Mapping[str, str] | None = None
    error: str | None = None
    queue_position: int | None = None


@dataclass(frozen=True, slots=True)
class ImportImage:
    """The body of `POST /images/import` (additive). `path` is absolute, on the server's host."""

    path: str
    name: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}
