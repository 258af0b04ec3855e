"""How full a host is that is not there, by the instances of a stand-in for the fleet."""

from collections.abc import Sequence
from typing import Protocol

from ramet.admission.admission import Admission
from ramet.admission.demand import Demand, Resource
from ramet.admission.report import DiskUse, HostReport, Line, Usage
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.instance.fleet_types import InstanceView


class FleetOfRecords(Protocol):
    """What is asked of the fleet."""

    def admission(self) -> Admission: ...

    def list(self) -> Sequence[InstanceView]: ...


class StandInResources:
    """How full the host of a stand-in is."""

    def __init__(self, fleet: FleetOfRecords) -> None:
        self._fleet = fleet

    def report(self) -> HostReport:
        ledger = self._fleet.admission().ledger

        def line(resource: Resource) -> Line:
            limit = ledger.limit_of(resource)
            allocated = ledger.total_of(resource)
            return Line(limit.capacity, limit.effective, allocated, limit.ratio, limit.source)

        instance_count = len(self._fleet.list())
        endpoints = Line(1000, 1000, instance_count, 1.0, "configured")
        return HostReport(
            cpu=line(Resource.CPU),
            memory=line(Resource.MEMORY),
            disk=line(Resource.DISK),
            network=line(Resource.NETWORK),
            disk_io=line(Resource.DISK_IO),
            endpoints=endpoints,
            capture_count=1,
            capture_memory_bytes=1 << 28,
            tap_count=instance_count,
        )

    def held(self, instance: InstanceId) -> Demand:
        return self._fleet.admission().ledger.held(instance)

    def usage(self, record: InstanceRecord) -> Usage:
        return Usage(1.5, 96 << 20, 1 << 30, 2048, 1024) if record.state is State.RUNNING else Usage()

    async def disk_use(self) -> DiskUse:
        return DiskUse(
            image_bytes=5 << 20, oci_cache_bytes=3 << 20, volume_bytes=2 << 20, overlay_bytes=1 << 20
        )
