"""What a volume is, and how an instance has it mounted.

A volume is a disk with a life of its own. One instance may write to it, or many may read it; with an overlay
an instance that reads has what it writes itself, on its own disk, so that a fork, a sleep or a snapshot takes
it along with everything else that the instance has written.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from ramet.core.errors import Conflict, Invalid, NotFound
from ramet.core.ids import VolumeId

GIB: Final = 1 << 30
VOLUME_GIB_MAX: Final = 8192
"""An ext4 in a file of the host's ext4, which ends at 16 TiB, with room to spare."""
VOLUME_COUNT_MAX: Final = 8
"""Of one instance; its hypervisor may have fewer places."""
MOUNT_PATH_LENGTH_MAX: Final = 1024

_KERNEL_FOLDERS: Final = frozenset({"proc", "sys", "dev"})
_SYSTEM_FOLDERS: Final = frozenset(
    {"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/etc", "/boot", "/run"}
)


class InvalidMount(Invalid):
    """A volume cannot be mounted there, or not like that."""

    code = "invalid_mount"
    remedy_default = "mount it at an absolute path of its own, such as /data"


class MountTaken(Conflict):
    """The instance has something mounted at this path, or has this volume already."""

    code = "mount_taken"


class VolumeNotAttached(NotFound):
    """The instance has no such volume."""

    code = "volume_not_attached"


class VolumeWritable(Conflict):
    """An instance writes to a volume; a copy of it would write to the same."""

    code = "volume_writable"


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """One volume. `size_bytes` is what it may hold at most; `created_at` Unix seconds."""

    id: VolumeId
    name: str
    size_bytes: int
    created_at: float
    tags: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it was not.
        """
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """How an instance has a volume.

    `overlay_part` is the place, among those of the instance's disk behind the root's, that holds what it
    writes itself; None: it has no overlay.
    """

    volume: VolumeId
    path: str
    is_read_only: bool = False
    overlay_part: int | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Read what `asdict` and JSON made of one."""
        return cls(VolumeId(raw["volume"]), raw["path"], raw["is_read_only"], raw["overlay_part"])


def check_mount_path(path: str) -> None:
    """Raise InvalidMount unless a volume may be mounted at `path`."""
    parts = path.split("/")
    if not path.startswith("/") or path == "/" or not path.isprintable() or len(path) > MOUNT_PATH_LENGTH_MAX:
        raise InvalidMount(f"{path[:80]!r} is no path to mount a volume at", field="mount_path")
    if any(part in ("", ".", "..") for part in parts[1:]):
        raise InvalidMount(
            f"{path[:80]!r} is not written plainly",
            remedy="leave out '//', '.', '..' and a '/' at the end",
            field="mount_path",
        )
    if parts[1] in _KERNEL_FOLDERS or path in _SYSTEM_FOLDERS:
        raise InvalidMount(f"{path[:80]} belongs to the system of the guest", field="mount_path")


def check_mounts(mounts: Iterable[VolumeMount]) -> None:
    """Raise InvalidMount if an instance cannot have all of `mounts` together."""
    mounts = tuple(mounts)
    if len(mounts) > VOLUME_COUNT_MAX:
        raise InvalidMount(
            f"there are {len(mounts)} volumes, and an instance has {VOLUME_COUNT_MAX} at most",
            remedy="use fewer volumes",
            field="volumes",
        )
    for index, mount in enumerate(mounts):
        check_mount_path(mount.path)
        if mount.overlay_part is not None and not mount.is_read_only:
            raise InvalidMount(
                "an overlay is over a volume that is read only", remedy="set readonly", field="volumes"
            )
        if any(other.path == mount.path for other in mounts[:index]):
            raise InvalidMount(f"two volumes are mounted at {mount.path}", field="volumes")
        if any(other.volume == mount.volume for other in mounts[:index]):
            raise InvalidMount(
                f"volume {mount.volume} is there twice", remedy="mount it once", field="volumes"
            )


def with_mount(mounts: tuple[VolumeMount, ...], mount: VolumeMount, name: str) -> tuple[VolumeMount, ...]:
    """Return the mounts of the instance `name` with one more.

    Raises:
        MountTaken: it has that volume, or something at that path.
        InvalidMount: it has as many as it can.
    """
    for other in mounts:
        if other.volume == mount.volume or other.path == mount.path:
            raise MountTaken(
                f"instance {name} has volume {other.volume} at {other.path}",
                remedy="choose another path, or detach that volume first",
                volume=other.volume,
            )
    check_mounts((*mounts, mount))
    return (*mounts, mount)


def without_mount(mounts: tuple[VolumeMount, ...], volume: VolumeId, name: str) -> tuple[VolumeMount, ...]:
    """Return the mounts of the instance `name` without that of `volume`.

    Raises:
        VolumeNotAttached: there is none.
    """
    left = tuple(mount for mount in mounts if mount.volume != volume)
    if len(left) == len(mounts):
        raise VolumeNotAttached(
            f"instance {name} has no volume {volume}", remedy=f"ramet inspect {name}", volume=volume
        )
    return left


def demand_copyable(mounts: Iterable[VolumeMount]) -> None:
    """Check that a copy of an instance with `mounts` would write to no volume of its source.

    Raises:
        VolumeWritable: it would.
    """
    for mount in mounts:
        if not mount.is_read_only:
            raise VolumeWritable(
                f"the instance writes to volume {mount.volume}, and a copy of it would write to the same",
                remedy="make a source that has the volume read only, or read only with an overlay",
                volume=mount.volume,
            )
