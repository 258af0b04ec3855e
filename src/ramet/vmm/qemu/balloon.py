"""The balloon of a guest of QEMU's.

What a guest gives back QEMU discards. Of a guest that was booted these are pages of its own. Of one that was
loaded, they are a private mapping of a capture's file, into which QEMU 7.2 punches holes, for all who map it;
where the file is sealed it fails to, page by page.
"""

from typing import Final

from ramet.vmm.port import BalloonUnsupported, SizeOutOfRange
from ramet.vmm.qemu.command import BOOTED_MEMORY
from ramet.vmm.qemu.monitor import Monitor

MIB: Final = 1 << 20


class Balloon:
    """The balloon of one VM with `memory_bytes`; errors as of `Ballooned`, and of `Monitor.execute`."""

    def __init__(self, monitor: Monitor, memory_bytes: int) -> None:
        self._monitor, self._memory_bytes = monitor, memory_bytes
        self._asked_bytes: int | None = None

    async def asked_bytes(self) -> int:
        """Return how much it was last asked to give back; of what an earlier daemon asked, what it gave."""
        if self._asked_bytes is None:  # QEMU tells what there is, not what was asked for.
            told = await self._monitor.execute("query-balloon")
            assert isinstance(told, dict)
            self._asked_bytes = max(0, self._memory_bytes - int(told["actual"]))
        return self._asked_bytes

    async def demand_inflatable(self) -> None:
        """Check that its pages are its own."""
        memory = await self._monitor.execute("qom-get", path="/objects/ram", property="type")
        if memory != BOOTED_MEMORY:
            raise BalloonUnsupported("QEMU takes no memory back from what was loaded from a capture")

    async def ask(self, balloon_bytes: int) -> None:
        """Ask the guest to give back so much in all, in whole MiB."""
        if not 0 <= balloon_bytes < self._memory_bytes:
            raise SizeOutOfRange(
                f"it can give back less than {self._memory_bytes} bytes, not {balloon_bytes}"
            )
        if balloon_bytes:
            await self.demand_inflatable()
        kept_bytes = self._memory_bytes - balloon_bytes // MIB * MIB
        await self._monitor.execute("balloon", value=kept_bytes)
        self._asked_bytes = self._memory_bytes - kept_bytes
