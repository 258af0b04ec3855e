"""What the fleet needs of the host it is on."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from ramet.core.health import Health
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, RestorePoint
from ramet.instance.actor import Performer
from ramet.instance.fleet_types import ExecCommand, ExecSession, ForkPoolStatus, PathStat

LogSource = Literal["app", "vmm", "hypeman"]


class Host(Performer, Protocol):
    """What the fleet needs of the host besides performing actions."""

    def mint(self, record: InstanceRecord, pool: str | None = None) -> InstanceRecord:
        """Hold an endpoint for a new instance and journal it; returns the record with its slot.

        One that is about to be forked from the running instance or the snapshot `pool` (an id) may be given
        the place of a child made ahead, and with it another id.

        Raises:
            Exhausted: a limit of the host was reached; nothing is held.
        """
        ...

    def addresses(self, record: InstanceRecord) -> tuple[str | None, str | None]:
        """Return (ip, mac) as text, None without a network."""
        ...

    def network_degraded(self, record: InstanceRecord) -> str | None:
        """Return why its traffic is not limited as asked, None if it is."""
        ...

    def fork_pool(self, record: InstanceRecord) -> ForkPoolStatus | None:
        """Return how full its pool of children made ahead is, None if it has none."""
        ...

    def health(self, record: InstanceRecord) -> Health | None:
        """Return what its checks have found in this run, None if none has ended yet."""
        ...

    def timings_ms(self, instance: InstanceId) -> dict[str, float]:
        """Return how long each phase of its making took."""
        ...

    async def open_exec(self, record: InstanceRecord, command: ExecCommand) -> ExecSession:
        """Start a command in the guest. Raises Broken, Invalid."""
        ...

    async def stat_path(self, record: InstanceRecord, path: str, *, follow_links: bool) -> PathStat:
        """Tell what is at a path of the guest. Raises Broken."""
        ...

    def open_archive(
        self, record: InstanceRecord, path: str, *, follow_links: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read a path of the guest as a tar stream. Raises NotFound, Invalid, Broken."""
        ...

    async def put_archive(
        self, record: InstanceRecord, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool
    ) -> None:
        """Unpack a tar stream into a directory of the guest. Raises NotFound, Invalid, Broken."""
        ...

    def restore_point(
        self, record: InstanceRecord, *, with_memory: bool
    ) -> AbstractAsyncContextManager[RestorePoint]:
        """Have an instance as it is now stand still, inside, to be copied or kept.

        Raises:
            WrongState: it has no memory to speak of, or is on its way from one state to another.
            RametError: it cannot be captured.
        """
        ...

    def logs(
        self,
        record: InstanceRecord,
        source: LogSource,
        tail: int,
        *,
        follow: bool,
        is_alive: Callable[[], bool],
    ) -> AsyncIterator[str]:
        """Yield log lines, oldest first."""
        ...
