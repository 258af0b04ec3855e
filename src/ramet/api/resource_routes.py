"""The calls that tell how full the host is, and what each instance uses of it."""

from typing import Final

from fastapi import APIRouter, Response
from pydantic import TypeAdapter

from ramet.admission.report import Line, Usage
from ramet.api.ports import FleetPort, ResourcesPort
from ramet.api.turns import JsonPieces, dump_in_turns
from ramet.core.spec import InstanceRecord
from ramet.wire_api import resources as wire

_RESOURCES: Final = TypeAdapter(wire.Resources)
_ALLOCATIONS: Final = TypeAdapter(tuple[wire.ResourceAllocation, ...])
_NO_ALLOCATIONS: Final = b'"allocations":[]'
"""What pydantic writes where there are none."""


def router(fleet: FleetPort, resources: ResourcesPort) -> APIRouter:
    """Return the routes on resources."""
    routes = APIRouter(tags=["resources"])

    @routes.get("/resources", response_model=wire.Resources)
    async def get_resources() -> Response:
        use = await resources.disk_use()
        report = resources.report()
        shown = wire.Resources(
            cpu=_to_status("cpu", report.cpu),
            memory=_to_status("memory", report.memory),
            disk=_to_status("disk", report.disk),
            network=_to_status("network", report.network),
            disk_io=_to_status("disk_io", report.disk_io),
            disk_breakdown=wire.DiskBreakdown(
                use.image_bytes, use.oci_cache_bytes, use.volume_bytes, use.overlay_bytes
            ),
            allocations=(),  # Put in below: there may be thousands.
            endpoints=_to_status("endpoints", report.endpoints),
            captures=wire.Captures(report.capture_count, report.capture_memory_bytes),
            taps=report.tap_count,
        )
        head, _, tail = _RESOURCES.dump_json(shown).partition(_NO_ALLOCATIONS)
        pieces = await dump_in_turns(
            _ALLOCATIONS, fleet.find(), lambda view: _to_allocation(view.record, resources)
        )
        return JsonPieces([head, _NO_ALLOCATIONS[:-2], *pieces, tail])

    @routes.get("/instances/{id}/stats", tags=["instances"])
    async def get_stats(id: str) -> wire.InstanceStats:
        record = fleet.get(id).record
        return _to_stats(record, resources.usage(record))

    return routes


def _to_stats(record: InstanceRecord, usage: Usage) -> wire.InstanceStats:
    allocated_bytes = record.spec.memory_bytes
    return wire.InstanceStats(
        instance_id=record.id,
        instance_name=record.name,
        allocated_vcpus=record.spec.vcpu_count,
        allocated_memory_bytes=allocated_bytes,
        cpu_seconds=usage.cpu_s,
        memory_rss_bytes=usage.resident_bytes,
        memory_vms_bytes=usage.virtual_bytes,
        network_rx_bytes=usage.received_bytes,
        network_tx_bytes=usage.sent_bytes,
        memory_utilization_ratio=usage.resident_bytes / allocated_bytes if usage.resident_bytes else None,
    )


def _to_status(name: str, line: Line) -> wire.ResourceStatus:
    return wire.ResourceStatus(
        type=name,
        capacity=line.capacity or 0,
        effective_limit=line.limit or 0,
        allocated=line.allocated,
        available=line.available or 0,
        oversub_ratio=line.ratio,
        source=line.source,
    )


def _to_allocation(record: InstanceRecord, resources: ResourcesPort) -> wire.ResourceAllocation:
    held = resources.held(record.id)
    holds_network = held.network_bytes_per_s > 0
    return wire.ResourceAllocation(
        instance_id=record.id,
        instance_name=record.name,
        cpu=held.cpu_count,
        memory_bytes=held.memory_bytes,
        disk_bytes=held.disk_bytes,
        network_download_bps=(record.spec.download_bytes_per_s or 0) if holds_network else 0,
        network_upload_bps=(record.spec.upload_bytes_per_s or 0) if holds_network else 0,
        disk_io_bps=held.disk_io_bytes_per_s,
    )
