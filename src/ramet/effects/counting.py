"""What the instances that a starting daemon finds hold of this host; and what is told of it later."""

from collections.abc import Iterable

from anyio import to_thread

from ramet.admission.demand import Demand, Resource
from ramet.admission.report import DiskUse, HostReport, Line, Usage, allocated_bytes
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord
from ramet.effects.site import Site
from ramet.linux.process import read_usage
from ramet.snapshots.mapped import mapped_captures


def count_found(site: Site, records: Iterable[InstanceRecord]) -> None:
    """Count instances as their records say, and the captures that their VMMs map. Reads /proc.

    The daemon that took a capture may be gone: who maps it says that it is there, and how large it is.
    """
    admission = site.admission
    for record in records:
        admission.take_up(record)
        rig = site.rigs.get(record.id)
        runtime = record.runtime if rig is None else rig.vm.runtime
        if runtime is None:
            continue
        try:
            mapped = mapped_captures(runtime.pid)
        except ProcessLookupError:
            continue  # It has just ended, and its instance will be told.
        for capture, size_bytes in mapped.items():
            admission.captures.find(record.id, capture, size_bytes)


class SiteResources:
    """How full this host is."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def report(self) -> HostReport:
        """Return what there is and what is held; arithmetic only."""
        admission, network = self._site.admission, self._site.network.statistics()
        endpoint_count = network.held_count + network.free_count
        return HostReport(
            cpu=self._line(Resource.CPU),
            memory=self._line(Resource.MEMORY),
            disk=self._line(Resource.DISK),
            network=self._line(Resource.NETWORK),
            disk_io=self._line(Resource.DISK_IO),
            endpoints=Line(endpoint_count, endpoint_count, network.held_count, 1.0, "configured"),
            capture_count=admission.captures.count,
            capture_memory_bytes=admission.captures.memory_bytes,
            tap_count=network.attached_count,
        )

    def held(self, instance: InstanceId) -> Demand:
        """Return what an instance holds."""
        return self._site.admission.ledger.held(instance)

    def usage(self, record: InstanceRecord) -> Usage:
        """Return what an instance uses now. Reads /proc."""
        runtime = record.runtime
        if runtime is None:
            return Usage()
        try:
            used = read_usage(runtime.pid, start_ticks=runtime.start_ticks)
        except ProcessLookupError:
            return Usage()  # It has just ended.
        received_bytes, sent_bytes = self._site.network.traffic(record.id)
        return Usage(used.cpu_s, used.resident_bytes, used.virtual_bytes, received_bytes, sent_bytes)

    async def disk_use(self) -> DiskUse:
        """Look through the data folder for what its files take."""
        folder = self._site.folder

        def measure() -> DiskUse:
            cache_bytes = allocated_bytes(folder.images / "blobs")
            return DiskUse(
                image_bytes=allocated_bytes(folder.images) - cache_bytes,
                oci_cache_bytes=cache_bytes,
                volume_bytes=allocated_bytes(folder.volumes),
                overlay_bytes=allocated_bytes(folder.layers),
            )

        return await to_thread.run_sync(measure)

    def _line(self, resource: Resource) -> Line:
        ledger = self._site.admission.ledger
        limit = ledger.limit_of(resource)
        return Line(
            limit.capacity,
            limit.effective,
            ledger.total_of(resource),
            limit.ratio,
            limit.source,
        )
