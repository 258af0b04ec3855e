"""What the API needs of fleet, images and host; the daemon passes the real ones, tests a stand-in."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, Protocol

from ramet.admission.demand import Demand
from ramet.admission.report import DiskUse, HostReport, Usage
from ramet.core.compression import CompressionAsk, MemoryState
from ramet.core.ids import InstanceId, VolumeId
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.snapshot_schedule import ScheduleRecord, SnapshotSchedule
from ramet.core.spec import InstanceRecord, InstanceSpec, SpecChanges, State
from ramet.core.verification import Verification
from ramet.core.volumes import VolumeMount, VolumeRecord
from ramet.images import Credentials, Digest, Image, ImportProgress, Platform, PullView, Reference
from ramet.instance.events import AttachAsked, DetachAsked
from ramet.instance.fleet_types import (
    ExecCommand,
    ExecSession,
    ForkOutcome,
    ForkPoolStatus,
    InstanceView,
    PathStat,
    WaitOutcome,
)
from ramet.policies.idle import IdleStatus
from ramet.policies.reclaiming import Reclaimed

LogSource = Literal["app", "vmm", "hypeman"]


class FleetPort(Protocol):
    """All instances. `ref` is a name, an id or a unique beginning of an id."""

    def get(self, ref: str) -> InstanceView:
        """Return one instance.

        Raises:
            InstanceNotFound, InstanceAmbiguous: as they say; so does every other method with a `ref`.
        """
        ...

    def list(self) -> Sequence[InstanceView]: ...

    def find(
        self,
        *,
        state: State | None = None,
        tags: Mapping[str, str] | None = None,
        after: tuple[float, str] | None = None,
    ) -> Iterator[InstanceView]:
        """Yield those in `state` and with all of `tags`, oldest first, behind `after`.

        Who that is, is settled at once; each is told as it is when its turn comes, if it is not gone by then.
        """
        ...

    async def create(self, name: str, spec: InstanceSpec) -> InstanceView: ...

    async def start(
        self, ref: str, *, entrypoint: tuple[str, ...] | None = None, cmd: tuple[str, ...] | None = None
    ) -> InstanceView:
        """Boot a stopped instance from its disk; what is given replaces that part of its spec."""
        ...

    async def stop(self, ref: str) -> InstanceView: ...

    async def delete(self, ref: str) -> None: ...

    async def wait(self, ref: str, state: State, timeout_s: float) -> WaitOutcome: ...

    async def set_fork_pool(self, ref: str, size: int) -> InstanceView: ...

    async def update(self, ref: str, changes: SpecChanges) -> InstanceView:
        """Have parts of an instance's spec be others from now on."""
        ...

    async def change_volumes(self, ref: str, asked: AttachAsked | DetachAsked) -> InstanceView:
        """Have a stopped instance mount a volume more, or less, from its next boot on."""
        ...

    async def standby(self, ref: str, compression: CompressionAsk = ...) -> InstanceView:
        """Store the memory of a running instance and end its VMM; later it may be compressed."""
        ...

    async def restore(self, ref: str) -> InstanceView:
        """Wake a sleeping instance."""
        ...

    async def fork(
        self, ref: str, names: Sequence[str], *, target: State | None = None
    ) -> Sequence[ForkOutcome]:
        """Make one child per name, in their order; raises only if none could be made.

        `target` is what they are to be: Running, Standby or Stopped; None: what the source is.
        """
        ...

    async def open_exec(self, ref: str, command: ExecCommand) -> ExecSession: ...

    async def stat_path(self, ref: str, path: str, *, follow_links: bool) -> PathStat: ...

    def open_archive(
        self, ref: str, path: str, *, follow_links: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read `path` with all below it as a pax tar stream; names begin with the last part of `path`."""
        ...

    async def put_archive(
        self, ref: str, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool
    ) -> None:
        """Unpack a tar stream into the directory `path`, which exists."""
        ...

    def logs(self, ref: str, *, source: LogSource, tail: int, follow: bool) -> AsyncIterator[str]:
        """Yield the last `tail` lines, then, if `follow`, each new one."""
        ...


class IdlePort(Protocol):
    """Who has instances sleep by themselves. `ref` as of `FleetPort`."""

    def status(self, ref: str) -> IdleStatus: ...

    def hold(self, ref: str) -> IdleStatus:
        """Promise that an instance is awake for as long as its policy lets it be idle.

        Raises:
            InstanceInStandby: it sleeps, or is about to.
        """
        ...


class SchedulesPort(Protocol):
    """Who takes snapshots by schedule. `ref` as of `FleetPort`."""

    def get(self, ref: str) -> ScheduleRecord:
        """Return the schedule of an instance. Raises ScheduleNotFound: it has none; so does `delete`."""
        ...

    def put(self, ref: str, schedule: SnapshotSchedule) -> ScheduleRecord:
        """Have an instance have a schedule, in the place of any other; durable when this returns."""
        ...

    def delete(self, ref: str) -> None: ...


class ReclaimPort(Protocol):
    """Who takes memory back from guests."""

    async def reclaim(
        self, wanted_bytes: int, hold_s: float, *, is_dry_run: bool = False, reason: str = ""
    ) -> Reclaimed:
        """Have guests give back so much in all for `hold_s`, in the place of any earlier request."""
        ...


class ResourcesPort(Protocol):
    """How full the host is."""

    def report(self) -> HostReport: ...

    def held(self, instance: InstanceId) -> Demand: ...

    def usage(self, record: InstanceRecord) -> Usage: ...

    async def disk_use(self) -> DiskUse: ...


class SnapshotsPort(Protocol):
    """All named snapshots. `ref` is an id, a name or a unique beginning of an id."""

    def list(
        self,
        *,
        source: str | None = None,
        kind: SnapshotKind | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Sequence[SnapshotRecord]:
        """Return those that are all of what is not None, oldest first; `source` is an id or a name."""
        ...

    def get(self, ref: str) -> SnapshotRecord:
        """Return one snapshot.

        Raises:
            SnapshotNotFound, SnapshotAmbiguous: as they say; so does every other method with a `ref`.
        """
        ...

    def memory_state(self, snapshot: SnapshotRecord) -> MemoryState | None:
        """Return how its memory lies on the disk; None: it has none."""
        ...

    async def create(
        self,
        instance: str,
        kind: SnapshotKind,
        name: str | None,
        tags: Mapping[str, str],
        compression: CompressionAsk = ...,
    ) -> SnapshotRecord:
        """Take one of an instance, which goes on; later its memory may be compressed."""
        ...

    async def delete(self, ref: str) -> None: ...

    def set_fork_pool(self, ref: str, size: int) -> SnapshotRecord:
        """Have `size` children of one made ahead of its next forks. Raises Invalid: it has no memory."""
        ...

    def fork_pool(self, snapshot: SnapshotRecord) -> ForkPoolStatus | None:
        """Return how full its pool is; None: it has none."""
        ...

    def export(self, ref: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read one as a stream that `import_file` takes, on this host or another."""
        ...

    async def verify(self, ref: str) -> Verification:
        """Look whether one still is what was stored."""
        ...

    async def import_file(self, chunks: AsyncIterator[bytes], name: str | None = None) -> SnapshotRecord:
        """Make one of such a stream; `name` None: it is called as it was."""
        ...

    async def fork(
        self,
        ref: str,
        names: Sequence[str],
        *,
        target: State | None = None,
        hypervisor: str | None = None,
    ) -> Sequence[ForkOutcome]:
        """Make one child per name, in their order; `target` None: Running with memory, Stopped without.

        `hypervisor`: of one without memory, another than its own.
        """
        ...

    async def restore(
        self, instance: str, ref: str, *, target: State | None = None, hypervisor: str | None = None
    ) -> InstanceView:
        """Put an instance that does not run back to one of its own; `target`, `hypervisor` as of `fork`."""
        ...


class VolumesPort(Protocol):
    """All volumes. `ref` is an id, a name or a unique beginning of an id."""

    def list(self, tags: Mapping[str, str] | None = None) -> Sequence[VolumeRecord]:
        """Return those that have all of `tags`, oldest first."""
        ...

    def get(self, ref: str) -> VolumeRecord:
        """Return one volume.

        Raises:
            VolumeNotFound, VolumeAmbiguous: as they say; so does every other method with a `ref`.
        """
        ...

    def attachments(self, volume: VolumeId) -> Mapping[InstanceId, VolumeMount]:
        """Return who has a volume, and how."""
        ...

    async def create(
        self,
        name: str,
        size_bytes: int,
        tags: Mapping[str, str],
        volume: str | None = None,
        archive: AsyncIterator[bytes] | None = None,
    ) -> VolumeRecord:
        """Make one, empty or with the content of a tar stream; `volume` is its id."""
        ...

    async def delete(self, ref: str) -> None:
        """Remove one that nobody has. Raises VolumeInUse."""
        ...


class PullsPort(Protocol):
    """What is pulled, or could not be."""

    async def start(
        self,
        reference: Reference,
        *,
        platform: Platform | None = None,
        credentials: Credentials | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> PullView:
        """Begin a pull, or join it; return once the registry has told the digest."""
        ...

    async def fetch(self, reference: Reference) -> Image:
        """Pull, or join who does, and return the image; cancelling the caller does not end the pull."""
        ...

    def find(self, ref: str) -> PullView | None: ...

    def list(self) -> Sequence[PullView]: ...


class CatalogPort(Protocol):
    """All images."""

    @property
    def pulls(self) -> PullsPort: ...

    async def import_path(
        self,
        path: Path,
        *,
        name: str | None = None,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> Image: ...

    def resolve(self, ref: str) -> Image: ...

    def list(self) -> Sequence[Image]: ...

    async def tag(self, ref: str, name: str) -> Image:
        """Give an image a further name. Raises ImageNotFound, InvalidReference."""
        ...

    async def remove(self, ref: str, *, in_use: Callable[[Digest], bool]) -> None: ...
