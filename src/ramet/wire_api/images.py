"""Images as the API shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """How far a pull is; bytes are of layers as the registry has them."""

    layers_total: int
    layers_done: int
    bytes_total: int
    bytes_done: int


@dataclass(frozen=True, slots=True)
class Image:
    """One name of an image, perhaps still on its way.

    `size_bytes` is of its root disk; `created_at` in RFC 3339.
    `status` is pending, pulling, converting, ready or failed; `error_code` and `progress` are additive.
    """

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
    error_code: str | None = None
    progress: ImageProgress | None = None


@dataclass(frozen=True, slots=True)
class PullCredentials:
    """A login for the registry of one pull; kept in memory and only as long as that lasts."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    registry_token: str | None = field(default=None, repr=False)

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class PullImage:
    """The body of `POST /images`."""

    name: str
    platform: str | None = None
    credentials: PullCredentials | None = None
    tags: Mapping[str, str] | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class TagImage:
    """The body of `POST /images/{name}/tag`: a further name for the image."""

    target: str

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ImportImage:
    """The body of `POST /images/import` (additive). `path` is absolute, on the server's host."""

    path: str
    name: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}
