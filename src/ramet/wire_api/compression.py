"""How stored memory is compressed, as the API says it of instances, of standby and of snapshots."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class SnapshotCompression:
    """How stored memory is to be compressed: `algorithm` zstd (the default) or lz4, `level` its own."""

    enabled: bool
    algorithm: str | None = None
    level: int | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """What counts for an instance where a request says nothing; the delay is a duration, of its standby."""

    compression: SnapshotCompression | None = None
    standby_compression_delay: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN
