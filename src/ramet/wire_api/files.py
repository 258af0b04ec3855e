"""Files of a guest: what a path is, and the messages of the copying WebSocket.

Archives (`/instances/{id}/archive`) are POSIX pax tar streams. The WebSocket `/instances/{id}/cp` is the
compatible protocol: a first text message, `CopyStart`; then text messages with a `type` and file bytes in
binary ones. Towards the guest it carries one file or folder for each connection and ends with a `result`,
from it a tree, whose last `end` is `final`; `error` ends both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

ARCHIVE_MEDIA_TYPE: Final = "application/x-tar"
TO_GUEST: Final = "to"
FROM_GUEST: Final = "from"
COPY_MESSAGE_BYTES_MAX: Final = 256 << 10  # The official client refuses more than 1 MiB.


@dataclass(frozen=True, slots=True)
class PathInfo:
    """What is at a path of a guest. `mode` holds permissions only; `error` says why it could not be told."""

    exists: bool
    is_dir: bool = False
    is_file: bool = False
    is_symlink: bool = False
    link_target: str | None = None
    mode: int = 0
    size: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CopyStart:
    """The first message of a copy. `mode`, `uid` and `gid` count towards the guest only."""

    direction: str
    guest_path: str
    is_dir: bool = False
    mode: int = 0
    follow_links: bool = False
    src_basename: str | None = None
    uid: int | None = None
    gid: int | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}
