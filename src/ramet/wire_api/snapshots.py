"""Standby and named snapshots as the API shows them and as requests ask for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ramet.wire_api.compression import SnapshotCompression
from ramet.wire_api.pools import ForkPool

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class StandbyInstance:
    """The body of `POST /instances/{id}/standby`."""

    compression: SnapshotCompression | None = None
    compression_delay: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot: `kind` Standby (memory and disk) or Stopped (disk); times in RFC 3339 and UTC.

    `size_bytes` is what memory and disk take on the host's disk, also of what others share;
    `uncompressed_size_bytes` the memory alone as it was stored, null without one. `compression_state` is
    none, compressing (from when it is asked for), compressed or error; `compression` how.
    Additive: `fork_pool`, null without one.
    """

    id: str
    kind: str
    source_instance_id: str
    source_instance_name: str
    source_hypervisor: str
    created_at: str
    size_bytes: int
    name: str | None = None
    tags: Mapping[str, str] | None = None
    compression_state: str | None = None
    compression: SnapshotCompression | None = None
    compression_error: str | None = None
    compressed_size_bytes: int | None = None
    uncompressed_size_bytes: int | None = None
    fork_pool: ForkPool | None = None


@dataclass(frozen=True, slots=True)
class CreateSnapshot:
    """The body of `POST /instances/{id}/snapshots`. Additive: `fork_pool`, as of `SetForkPool`."""

    kind: str
    name: str | None = None
    tags: Mapping[str, str] | None = None
    compression: SnapshotCompression | None = None
    fork_pool: int | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class RestoreSnapshot:
    """The body of `POST /instances/{id}/snapshots/{snapshot_id}/restore`.

    `target_state` is by default Running for kind Standby, Stopped for kind Stopped.
    """

    target_state: str | None = None
    target_hypervisor: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class ForkSnapshot:
    """The body of `POST /snapshots/{id}/fork`; `target_state` as of `RestoreSnapshot`."""

    name: str
    target_state: str | None = None
    target_hypervisor: str | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class VerifiedPart:
    """One file of a snapshot, or its disk: `part` memory, devices or disk; `size_bytes` what was read of it.

    `proof` is checksums (every byte is that of when they were made) or readable (there was nothing to compare
    with yet). `error` says what is wrong; `chunk` is the first of `chunk_bytes` that is not what it was, from
    0, where that can be told.
    """

    part: str
    file: str
    size_bytes: int
    proof: str
    ok: bool
    error: str | None = None
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class SnapshotVerification:
    """The answer to `POST /snapshots/{id}/verify` (additive). `size_bytes` is all that was read.

    `checksums` is compared, made (there were none, so that only the next call compares) or none: it has no
    memory, or what cannot be read gets none.
    """

    snapshot_id: str
    ok: bool
    size_bytes: int
    checksums: str
    chunk_bytes: int
    parts: tuple[VerifiedPart, ...]
