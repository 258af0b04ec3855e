"""What a stranger's manifest must be before anything is done with it."""

import re
from collections.abc import Mapping
from typing import Final

from pydantic import TypeAdapter, ValidationError

from ramet.core.compression import COMPRESSION_DELAY_S_MAX, LEVELS, CompressionAsk
from ramet.core.errors import Invalid
from ramet.core.ids import ID_LENGTH, is_name
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import (
    DISK_IO_BYTES_PER_S_MAX,
    DISK_IO_BYTES_PER_S_MIN,
    MEMORY_BYTES_MAX,
    OVERLAY_BYTES_MAX,
    RATE_BYTES_PER_S_MAX,
    RATE_BYTES_PER_S_MIN,
    VCPU_COUNT_MAX,
    InstanceSpec,
)
from ramet.core.volumes import VOLUME_COUNT_MAX, check_mounts
from ramet.snapshots.export_file import PIECE_HEAD_BYTES, SCHEMA, BadExport, ExportManifest, PartHead

DEVICES_BYTES_MAX: Final = 64 << 20
TEXT_LENGTH_MAX: Final = 4096
TAG_COUNT_MAX: Final = 50
CREATED_AT_MAX: Final = 253_402_300_799.0  # The end of the year 9999, behind which no clock tells.

_MANIFEST: Final = TypeAdapter(ExportManifest)
_ID: Final = re.compile(rf"[a-z][a-z0-9]{{{ID_LENGTH - 1}}}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def read_manifest(data: bytes) -> ExportManifest:
    """Return the manifest that `data` is.

    Raises:
        BadExport: it is none, or says what no export says.
    """
    try:
        manifest = _MANIFEST.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadExport(
            f"the manifest of the exported snapshot cannot be read: {place}: {first['msg']}"
        ) from error
    if manifest.schema != SCHEMA:
        raise BadExport(
            f"the exported snapshot is of schema {manifest.schema}, and this ramet reads {SCHEMA}",
            remedy="export and import it with the same version of ramet",
        )
    for field, is_right in _facts(manifest).items():
        if not is_right:
            raise BadExport(f"the manifest of the exported snapshot is wrong: {field}")
    return manifest


def _facts(manifest: ExportManifest) -> Mapping[str, bool]:
    has_memory = manifest.kind is SnapshotKind.STANDBY
    of_memory = (manifest.format, manifest.rootfs_sha256, manifest.memory, manifest.devices)
    return {
        "name": manifest.name is None or is_name(manifest.name),
        "source": _ID.fullmatch(manifest.source) is not None,
        "source_name": is_name(manifest.source_name),
        "created_at": 0 <= manifest.created_at <= CREATED_AT_MAX,
        "tags": _are_tags(manifest.tags),
        "kind": all((part is not None) is has_memory for part in of_memory),
        "format": manifest.format is None or _is_text(str(manifest.format)),
        "rootfs_sha256": not has_memory or _SHA256.fullmatch(str(manifest.rootfs_sha256)) is not None,
        "disk": manifest.disk.size_bytes == manifest.spec.disk_bytes and _is_part(manifest.disk),
        "memory": manifest.memory is None
        or (manifest.memory.size_bytes == manifest.spec.memory_bytes_max and _is_part(manifest.memory)),
        "devices": manifest.devices is None
        or (manifest.devices.size_bytes <= DEVICES_BYTES_MAX and _is_part(manifest.devices)),
        **_facts_of_spec(manifest.spec),
    }


def _facts_of_spec(spec: InstanceSpec) -> Mapping[str, bool]:
    rates = (spec.download_bytes_per_s, spec.upload_bytes_per_s)
    words = (*spec.env, *spec.env.values(), *(spec.entrypoint or ()), *(spec.cmd or ()))
    return {
        "spec.image": _is_text(spec.image),
        "spec.image_digest": spec.image_digest.startswith("sha256:")
        and _SHA256.fullmatch(spec.image_digest.removeprefix("sha256:")) is not None,
        "spec.hypervisor": is_name(spec.hypervisor),
        "spec.vcpu_count": 1 <= spec.vcpu_count <= VCPU_COUNT_MAX,
        "spec.memory_bytes": 0 < spec.memory_bytes <= MEMORY_BYTES_MAX,
        "spec.hotplug_bytes": 0 <= spec.hotplug_bytes <= MEMORY_BYTES_MAX - spec.memory_bytes,
        "spec.overlay_bytes": 0 < spec.overlay_bytes <= OVERLAY_BYTES_MAX,
        "spec.overlay_parts": len(spec.overlay_parts) <= VOLUME_COUNT_MAX
        and all(0 < part <= OVERLAY_BYTES_MAX for part in spec.overlay_parts),
        "spec.volumes": _are_mounts(spec),
        "spec.env, entrypoint or cmd": not any("\0" in word for word in words),
        "spec.tags": _are_tags(spec.tags),
        "spec.compression": _is_compression(spec.compression),
        "spec.download_bytes_per_s or upload_bytes_per_s": all(
            rate is None or RATE_BYTES_PER_S_MIN <= rate <= RATE_BYTES_PER_S_MAX for rate in rates
        ),
        "spec.disk_io_bytes_per_s": spec.disk_io_bytes_per_s is None
        or DISK_IO_BYTES_PER_S_MIN <= spec.disk_io_bytes_per_s <= DISK_IO_BYTES_PER_S_MAX,
    }


def _are_mounts(spec: InstanceSpec) -> bool:
    try:
        check_mounts(spec.volumes)
    except Invalid:
        return False
    parts = [mount.overlay_part for mount in spec.volumes if mount.overlay_part is not None]
    are_there = all(0 <= part < len(spec.overlay_parts) for part in parts)
    return (
        are_there and len(set(parts)) == len(parts) and all(is_name(mount.volume) for mount in spec.volumes)
    )


def _is_part(head: PartHead) -> bool:
    # Every piece has a head; but for the last, which may be short, none is as short as one.
    return head.size_bytes >= 0 and 0 <= head.packed_bytes <= head.size_bytes * 2 + PIECE_HEAD_BYTES


def _is_compression(ask: CompressionAsk) -> bool:
    is_delay = ask.delay_s is None or 0 <= ask.delay_s <= COMPRESSION_DELAY_S_MAX
    return is_delay and (ask.how is None or ask.how.level in LEVELS[ask.how.algorithm])


def _is_text(text: str) -> bool:
    return 0 < len(text) <= TEXT_LENGTH_MAX and text.isprintable()


def _are_tags(tags: Mapping[str, str]) -> bool:
    return len(tags) <= TAG_COUNT_MAX and all(
        _is_text(key) and (not value or _is_text(value)) for key, value in tags.items()
    )
