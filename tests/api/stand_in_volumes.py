"""Volumes that live in memory; who has them, the records of the stand-in's instances tell."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId, VolumeId, mint_id
from ramet.core.volumes import VolumeMount, VolumeRecord
from ramet.volumes.errors import ArchiveInvalid, VolumeAmbiguous, VolumeInUse, VolumeNameTaken, VolumeNotFound

if TYPE_CHECKING:
    from tests.api.stand_in import StandInFleet


class StandInVolumes:
    """Volumes for the instances of `fleet`.

    `archives` are what was sent, `cut` how sending broke off.
    """

    def __init__(self, fleet: "StandInFleet") -> None:
        self._fleet = fleet
        self.records: dict[VolumeId, VolumeRecord] = {}
        self.archives: list[bytes] = []
        self.cut: list[RametError] = []

    def put(
        self, name: str, tags: Mapping[str, str] | None = None, volume: str | None = None
    ) -> VolumeRecord:
        """Have a volume of one gigabyte from now on."""
        record = VolumeRecord(VolumeId(volume or mint_id()), name, 1 << 30, time.time(), tags or {})
        self.records[record.id] = record
        return record

    def list(self, tags: Mapping[str, str] | None = None) -> Sequence[VolumeRecord]:
        wanted = (tags or {}).items()
        return [record for record in self.records.values() if wanted <= record.tags.items()]

    def get(self, ref: str) -> VolumeRecord:
        named = [record for record in self.records.values() if ref in (record.name, record.id)]
        found = named or [record for record in self.records.values() if ref and record.id.startswith(ref)]
        if not found:
            raise VolumeNotFound(f"there is no volume {ref[:80]!r}")
        if len(found) > 1:
            raise VolumeAmbiguous(f"{ref} begins {len(found)} ids")
        return found[0]

    def attachments(self, volume: VolumeId) -> Mapping[InstanceId, VolumeMount]:
        return {
            view.record.id: mount
            for view in self._fleet.list()
            for mount in view.record.spec.volumes
            if mount.volume == volume
        }

    async def create(
        self,
        name: str,
        size_bytes: int,
        tags: Mapping[str, str],
        volume: str | None = None,
        archive: AsyncIterator[bytes] | None = None,
    ) -> VolumeRecord:
        if any(name == record.name or volume == record.id for record in self.records.values()):
            raise VolumeNameTaken(f"there is a volume called {name}", remedy="choose another name")
        if archive is not None:
            try:
                self.archives.append(b"".join([chunk async for chunk in archive]))
            except RametError as error:
                self.cut.append(error)
                raise
            if not self.archives[-1]:
                raise ArchiveInvalid("the archive is empty")
        record = VolumeRecord(VolumeId(volume or mint_id()), name, size_bytes, time.time(), tags)
        self.records[record.id] = record
        return record

    async def delete(self, ref: str) -> None:
        record = self.get(ref)
        if self.attachments(record.id):
            raise VolumeInUse(f"volume {record.name} is attached", remedy="detach it")
        del self.records[record.id]
