"""Who has which volume: one writer, or any number of readers.

Everything follows from records: whoever changes one says so here first, and is refused before anything is
done. A snapshot with memory is a reader, too: what its guest knows of a volume must be so when it is forked.
Synchronous throughout, hence atomic on the event loop.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

from ramet.core.ids import InstanceId, SnapshotId, VolumeId
from ramet.core.snapshot import SnapshotRecord
from ramet.core.spec import InstanceRecord
from ramet.core.volumes import VolumeMount
from ramet.volumes.errors import VolumeInUse, VolumeNotFound

_SNAPSHOT: Final = "snapshot "


class _Holder(NamedTuple):
    """Who has a volume, as a person calls it, and how."""

    what: str
    mount: VolumeMount


class Attachments:
    """The holders of all volumes; `existing` are the volumes that there are."""

    def __init__(self, existing: Container[VolumeId]) -> None:
        self._existing = existing
        self._mounts: dict[str, tuple[VolumeMount, ...]] = {}
        self._holders: dict[VolumeId, dict[str, _Holder]] = {}

    def of(self, volume: VolumeId) -> Mapping[InstanceId, VolumeMount]:
        """Return the instances that have a volume, each with how it has it."""
        holders = self._holders.get(volume, {})
        return {
            InstanceId(key): holder.mount for key, holder in holders.items() if not key.startswith(_SNAPSHOT)
        }

    @contextmanager
    def changing(self, record: InstanceRecord) -> Iterator[None]:
        """Make `record` an instance's inside; if that fails, it has what it had.

        Raises:
            VolumeNotFound: one of its volumes is not there.
            VolumeInUse: somebody else writes to one, or it is to write to what somebody has.
        """
        before, mounts = self._mounts.get(record.id, ()), record.spec.volumes
        if mounts == before:
            yield
            return
        what = f"instance {record.name}"
        for mount in mounts:
            if mount not in before:
                self._demand_free(mount, record.id, what)
        self._set(record.id, what, mounts)
        try:
            yield
        except BaseException:
            self._set(record.id, what, before)
            raise

    def take_up(self, record: InstanceRecord) -> None:
        """Note an instance that is there, whatever others have. For startup."""
        self._set(record.id, f"instance {record.name}", record.spec.volumes)

    def forget(self, instance: InstanceId) -> None:
        """Note that an instance is gone. Harmless if it had nothing."""
        self._set(instance, "", ())

    @contextmanager
    def keeping(self, snapshot: SnapshotId, what: str, mounts: tuple[VolumeMount, ...]) -> Iterator[None]:
        """Have a snapshot that is made inside keep `mounts` already; if that fails, it has nothing.

        Its source may go meanwhile: what is captured goes on to need them.
        """
        self._set(_SNAPSHOT + snapshot, what, mounts)
        try:
            yield
        except BaseException:
            self.give_up(snapshot)
            raise

    def keep(self, snapshot: SnapshotRecord) -> None:
        """Note a snapshot that is there; without memory it needs no volume to stay as it is."""
        if snapshot.point.capture is not None:
            what = f"snapshot {snapshot.name or snapshot.id}"
            self._set(_SNAPSHOT + snapshot.id, what, snapshot.spec.volumes)

    def give_up(self, snapshot: SnapshotId) -> None:
        """Note that a snapshot is gone."""
        self._set(_SNAPSHOT + snapshot, "", ())

    def demand_unused(self, volume: VolumeId, name: str) -> None:
        """Check that nobody has a volume.

        Raises:
            VolumeInUse: somebody has.
        """
        for key, holder in self._holders.get(volume, {}).items():
            remedy = f"ramet rm {holder.what.partition(' ')[2]}, or detach it"
            if key.startswith(_SNAPSHOT):
                remedy = f"ramet snapshot rm {key.removeprefix(_SNAPSHOT)}"
            raise VolumeInUse(f"{holder.what} has volume {name}", remedy=remedy, volume=volume)

    def _demand_free(self, mount: VolumeMount, key: str, what: str) -> None:
        if mount.volume not in self._existing:
            raise VolumeNotFound(
                f"{what} needs volume {mount.volume}, which is not there", volume=mount.volume
            )
        for other, holder in self._holders.get(mount.volume, {}).items():
            if other == key or (mount.is_read_only and holder.mount.is_read_only):
                continue
            how = "is read by" if holder.mount.is_read_only else "is written to by"
            raise VolumeInUse(
                f"volume {mount.volume} {how} {holder.what}: one may write to it, or many read it",
                remedy="detach it there, or have all of them read only",
                volume=mount.volume,
            )

    def _set(self, key: str, what: str, mounts: tuple[VolumeMount, ...]) -> None:
        for mount in self._mounts.pop(key, ()):
            holders = self._holders[mount.volume]
            del holders[key]
            if not holders:
                del self._holders[mount.volume]
        for mount in mounts:
            self._holders.setdefault(mount.volume, {})[key] = _Holder(what, mount)
        if mounts:
            self._mounts[key] = mounts
