"""From the domain to the wire: what instances, snapshots and images are, as the API shows them."""

import time
from collections.abc import Mapping
from typing import Final

from ramet.api.auto_standby import shown_auto_standby
from ramet.api.errors import to_wire
from ramet.api.facts import HostFacts
from ramet.api.health import shown_health, shown_health_check
from ramet.api.mounts import shown_mounts
from ramet.api.restart import shown_restart_policy, shown_restart_status
from ramet.api.times import format_time, shown_time
from ramet.core.compression import NOT_SAID, Compression, CompressionAsk, MemoryState
from ramet.core.phases import Phases
from ramet.core.snapshot import SnapshotRecord
from ramet.core.units import format_byte_rate, format_duration, format_rate, format_size
from ramet.core.verification import CHUNK_BYTES, Verification
from ramet.images import Image
from ramet.instance.fleet_types import (
    ForkOutcome,
    ForkPoolStatus,
    InstanceView,
    exit_message,
    shell_exit_code,
)
from ramet.wire_api import images as wire_images
from ramet.wire_api import instances as wire
from ramet.wire_api import snapshots as wire_snapshots
from ramet.wire_api.compression import SnapshotCompression, SnapshotPolicy
from ramet.wire_api.pools import ForkPool

NETWORK_NAME: Final = "default"


def to_instance(
    view: InstanceView, facts: HostFacts, timings_ms: Mapping[str, float] | None = None
) -> wire.Instance:
    """Return `view` as the API shows it."""
    record, now = view.record, time.time()
    spec, phases = record.spec, record.phases
    ended = record.exit
    network = (
        wire.InstanceNetwork(
            enabled=True,
            name=NETWORK_NAME,
            ip=view.ip,
            mac=view.mac,
            bandwidth_download=_format_rate(spec.download_bytes_per_s),
            bandwidth_upload=_format_rate(spec.upload_bytes_per_s),
            degraded=view.network_degraded,
        )
        if spec.has_network
        else wire.InstanceNetwork(False)
    )
    return wire.Instance(
        id=record.id,
        name=record.name,
        image=spec.image,
        state=record.state.value,
        created_at=format_time(record.identity.created_at),
        state_error=record.state_error or None,
        image_digest=spec.image_digest,
        platform=facts.platform,
        hypervisor=spec.hypervisor,
        size=format_size(spec.memory_bytes),
        hotplug_size=format_size(spec.hotplug_bytes) if spec.hotplug_bytes else None,
        overlay_size=format_size(spec.overlay_bytes),
        disk_io_bps=_format_disk_io(spec.disk_io_bytes_per_s),
        skip_guest_agent=spec.skip_guest_agent,
        vcpus=spec.vcpu_count,
        env=spec.env,
        tags=spec.tags,
        network=network,
        snapshot_policy=_shown_policy(spec.compression),
        auto_standby=shown_auto_standby(spec.auto_standby),
        health_check=shown_health_check(spec.health_check),
        health_status=shown_health(record, view.health),
        restart_policy=shown_restart_policy(spec.restart_policy),
        restart_status=shown_restart_status(record, now),
        current_phase=record.state.value.lower(),
        current_phase_since=None if phases is None else format_time(phases.since),
        phase_durations_ms=None if phases is None else _shown_phases(phases, now),
        has_snapshot=record.capture is not None,
        exit_code=None if ended is None else shell_exit_code(ended),
        exit_message=None if ended is None else exit_message(ended) or None,
        started_at=shown_time(record.started_at),
        stopped_at=shown_time(record.stopped_at),
        expires_at=shown_time(spec.expires_at),
        volumes=shown_mounts(spec),
        parent_id=record.identity.parent,
        fork_pool=_to_fork_pool(spec.fork_pool, view.fork_pool),
        timings_ms=timings_ms,
    )


def _shown_phases(phases: Phases, now: float) -> Mapping[str, int]:
    return {state.lower(): spent_ms for state, spent_ms in phases.durations_ms(now).items()}


def _to_fork_pool(size: int, status: ForkPoolStatus | None) -> ForkPool | None:
    if status is None:
        return ForkPool(size, 0, 0, 0, resting=True) if size else None
    return ForkPool(
        size,
        status.waiting_count,
        status.taken_count,
        status.missed_count,
        resting=status.is_resting,
        error=status.error or None,
    )


def to_fork_result(outcome: ForkOutcome, facts: HostFacts) -> wire.ForkResult:
    """Return what became of one child as the API shows it."""
    return wire.ForkResult(
        name=outcome.name,
        instance=None if outcome.view is None else to_instance(outcome.view, facts),
        error=None if outcome.error is None else to_wire(outcome.error),
        timings_ms=outcome.timings_ms,
    )


def to_snapshot(
    record: SnapshotRecord, memory: MemoryState | None, pool: ForkPoolStatus | None
) -> wire_snapshots.Snapshot:
    """Return `record`, whose memory lies on the disk as `memory` says, as the API shows it."""
    compressed_bytes = None if memory is None else memory.compressed_bytes
    memory_bytes = record.memory_bytes if compressed_bytes is None else compressed_bytes
    how = None if memory is None else memory.how
    return wire_snapshots.Snapshot(
        id=record.id,
        kind=record.kind.value,
        source_instance_id=record.source,
        source_instance_name=record.source_name,
        source_hypervisor=record.spec.hypervisor,
        created_at=format_time(record.created_at),
        size_bytes=memory_bytes + record.disk_bytes,
        name=record.name,
        tags=record.tags,
        compression_state=None if memory is None else memory.state,
        compression=_shown_compression(how),
        compression_error=(memory.error or None) if memory is not None else None,
        compressed_size_bytes=compressed_bytes,
        uncompressed_size_bytes=None if memory is None else record.memory_bytes,
        fork_pool=_to_fork_pool(record.fork_pool, pool),
    )


def to_verification(snapshot: str, found: Verification) -> wire_snapshots.SnapshotVerification:
    """Return what came of looking at a snapshot as the API shows it."""
    parts = tuple(
        wire_snapshots.VerifiedPart(
            part=one.part.value,
            file=one.file,
            size_bytes=one.size_bytes,
            proof=one.proof.value,
            ok=not one.damage,
            error=one.damage or None,
            chunk=one.chunk,
        )
        for one in found.parts
    )
    return wire_snapshots.SnapshotVerification(
        snapshot_id=snapshot,
        ok=found.is_whole,
        size_bytes=sum(part.size_bytes for part in parts),
        checksums=found.checksums,
        chunk_bytes=CHUNK_BYTES,
        parts=parts,
    )


def to_image(image: Image, name: str | None = None) -> wire_images.Image:
    """Return `image` under one of its names."""
    config = image.config
    pairs = (entry.partition("=") for entry in config.env)
    return wire_images.Image(
        name=name or image.name,
        digest=image.digest,
        status="ready",
        created_at=image.created_at.isoformat(),
        size_bytes=image.size_bytes,
        platform=str(image.platform),
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        env={key: value for key, _, value in pairs},
        working_dir=config.working_dir,
        tags=image.labels.get(name or image.name, {}),
    )


def _shown_policy(ask: CompressionAsk) -> SnapshotPolicy | None:
    if ask == NOT_SAID:
        return None
    compression = _shown_compression(ask.how) or (SnapshotCompression(False) if ask.is_said else None)
    return SnapshotPolicy(compression, None if ask.delay_s is None else format_duration(ask.delay_s))


def _shown_compression(how: Compression | None) -> SnapshotCompression | None:
    return None if how is None else SnapshotCompression(True, how.algorithm.value, how.level)


def _format_rate(rate_bytes_per_s: int | None) -> str | None:
    return None if rate_bytes_per_s is None else format_rate(rate_bytes_per_s)


def _format_disk_io(rate_bytes_per_s: int | None) -> str | None:
    return None if rate_bytes_per_s is None else format_byte_rate(rate_bytes_per_s)
