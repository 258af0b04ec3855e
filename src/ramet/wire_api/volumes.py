"""Volumes as the API shows them and as requests ask for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A volume of an instance: writable, unless `readonly`.

    With `overlay`, which `readonly` must stand beside, what the instance writes is its own and up to
    `overlay_size`, such as "1GB".
    """

    volume_id: str
    mount_path: str
    readonly: bool | None = None
    overlay: bool | None = None
    overlay_size: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class VolumeAttachment:
    """An instance that has a volume."""

    instance_id: str
    mount_path: str
    readonly: bool


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume. `size_gb` in units of 1024^3 bytes, `created_at` in RFC 3339 and UTC."""

    id: str
    name: str
    size_gb: int
    created_at: str
    tags: Mapping[str, str]
    attachments: tuple[VolumeAttachment, ...]


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """The body of `POST /volumes`; without `id` one is made."""

    name: str
    size_gb: int
    id: str | None = None
    tags: Mapping[str, str] | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class AttachVolume:
    """The body of `POST /instances/{id}/volumes/{volume_id}`."""

    mount_path: str
    readonly: bool | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN
