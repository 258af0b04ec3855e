"""Volumes of instances, from the wire to the domain and back."""

from collections.abc import Sequence
from typing import NamedTuple

from ramet.api.asked import to_overlay_bytes
from ramet.api.facts import HostFacts
from ramet.api.ports import VolumesPort
from ramet.core.errors import Invalid
from ramet.core.ids import VolumeId
from ramet.core.spec import InstanceSpec
from ramet.core.units import format_size
from ramet.core.volumes import VolumeMount, check_mounts
from ramet.volumes.errors import VolumeNotFound
from ramet.wire_api import volumes as wire


class Mounts(NamedTuple):
    """What an instance is asked to have mounted, and the room on its disk that this takes, in bytes."""

    volumes: tuple[VolumeMount, ...] = ()
    overlay_parts: tuple[int, ...] = ()


def to_mounts(asked: Sequence[wire.VolumeMount], volumes: VolumesPort, facts: HostFacts) -> Mounts:
    """Return what `asked` means.

    Raises:
        VolumeNotFound, VolumeAmbiguous: there is no such volume.
        InvalidMount, Invalid: it cannot be mounted like that.
    """
    mounts: list[VolumeMount] = []
    parts: list[int] = []
    for one in asked:
        volume = volumes.get(one.volume_id).id
        part = None
        if one.overlay:
            if one.overlay_size is None:
                raise Invalid(
                    f"The overlay over volume {one.volume_id} has no size",
                    remedy="give overlay_size, such as 1GB",
                    field="volumes.overlay_size",
                )
            part = len(parts)
            parts.append(to_overlay_bytes("volumes.overlay_size", one.overlay_size, facts))
        elif one.overlay_size is not None:
            raise Invalid(
                f"Volume {one.volume_id} has no overlay, and overlay_size is given",
                remedy="set overlay, or leave overlay_size out",
                field="volumes.overlay_size",
            )
        mounts.append(VolumeMount(volume, one.mount_path, bool(one.readonly), part))
    check_mounts(mounts)
    return Mounts(tuple(mounts), tuple(parts))


def to_mount(volume: VolumeId, body: wire.AttachVolume) -> VolumeMount:
    """Return what an instance is asked to have besides.

    Raises:
        InvalidMount: it cannot be mounted there.
    """
    mount = VolumeMount(volume, body.mount_path, bool(body.readonly))
    check_mounts([mount])
    return mount


def id_of(ref: str, volumes: VolumesPort) -> VolumeId:
    """Return the id of a volume; what is no volume, not any more at least, is taken for an id.

    Raises:
        VolumeAmbiguous: several ids begin like that.
    """
    try:
        return volumes.get(ref).id
    except VolumeNotFound:
        return VolumeId(ref)


def shown_mounts(spec: InstanceSpec) -> tuple[wire.VolumeMount, ...]:
    """Return the volumes of an instance as the API shows them."""
    return tuple(
        wire.VolumeMount(
            volume_id=mount.volume,
            mount_path=mount.path,
            readonly=mount.is_read_only,
            overlay=mount.overlay_part is not None,
            overlay_size=None
            if mount.overlay_part is None
            else format_size(spec.overlay_parts[mount.overlay_part]),
        )
        for mount in spec.volumes
    )
