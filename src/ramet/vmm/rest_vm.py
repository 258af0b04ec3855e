"""What the VMMs have in common that are told what to do over REST: `FirecrackerVm`, `CloudHypervisorVm`.

Such a VMM stores and loads a guest by files of its own making, has raw disks, and maps the memory of a child
privately from a capture's file; so that what is the child's own is found and copied from outside.
"""

import asyncio
import os
import signal
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import anyio
from anyio import to_thread

from ramet.core.ids import InstanceId
from ramet.core.spec import Runtime
from ramet.linux.filled_once import FilledOnce
from ramet.linux.pagemap import PageRuns
from ramet.linux.plain_file import open_plain
from ramet.linux.process import HeldProcess, read_boot_id
from ramet.vmm.jail import Cell
from ramet.vmm.port import (
    Capture,
    CaptureFormat,
    LiveCapture,
    Machine,
    Restored,
    SnapshotIncompatible,
    VmmFailed,
    VmmSilent,
)
from ramet.vmm.private_mapping import Region, copy_changes, covers, find_changes, find_regions, lay_over
from ramet.vmm.raw_overlay import fill_disks, read_top_layer
from ramet.vmm.rest import COMMAND_TIMEOUT_S, Api, Refusal

T = TypeVar("T")

DIFFERENCE_RATIO_MAX: Final = 0.25
"""Of a file's memory: what differs more is stored as a whole."""
TAIL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the VMM may take, in seconds, before it counts as failed."""

    start_s: float = 30.0
    adopt_s: float = 10.0
    load_s: float = 60.0
    command_s: float = COMMAND_TIMEOUT_S


class Waiting:
    """What a VMM that waits will need: its machine, the memory it was started for, changes to that."""

    def __init__(self, machine: Machine, capture: Capture) -> None:
        self.machine = machine
        self.inherited_fd = self.memory_fd = -1  # Of packed memory there is nothing to be mapped.
        if not capture.is_packed:
            self.inherited_fd, self.memory_fd = capture.mapped.fd, os.dup(capture.mapped.fd)
        # Who loads later may have the same memory in another form, without changes.
        self.runs: PageRuns = capture.changes or ()
        self.changes_fd = os.dup(capture.memory.fd) if self.runs else -1
        nic = machine.nic
        self.tap_fd = os.dup(nic.tap_fd) if nic is not None and nic.tap_fd >= 0 else -1

    def close(self) -> None:
        """Close our descriptors. Idempotent."""
        for fd in (self.memory_fd, self.changes_fd, self.tap_fd):
            if fd >= 0:
                os.close(fd)
        self.memory_fd = self.changes_fd = self.tap_fd = -1

    def lay_over(self, pid: int) -> int:
        """Write the changes over the memory of `pid`, which has loaded what they are to; returns the bytes.

        Raises:
            OSError: the process is gone.
        """
        return lay_over(pid, find_regions(pid, self.memory_fd), self.changes_fd, self.runs)


class RestVm(LiveCapture, Restored):
    """One process and its API.

    Args:
        api_socket: its name in `folder`.
        agent_socket: likewise.
        cell: the jail that it is in, if it is in one.
    """

    product: ClassVar[str]
    """What it is called in errors."""
    logs: ClassVar[tuple[str, ...]]
    """Of its folder, the files whose ends are its last words."""

    def __init__(
        self,
        process: HeldProcess,
        folder: Path,
        timeouts: Timeouts,
        api_socket: str,
        agent_socket: str,
        cell: Cell | None = None,
    ) -> None:
        self.runtime = Runtime(process.pid, process.start_ticks, read_boot_id(), {})
        self.agent_socket = folder / agent_socket
        self._process, self._folder, self._timeouts, self._cell = process, folder, timeouts, cell
        self._api = Api(folder, api_socket, timeouts.command_s)
        self._waiting: Waiting | None = None
        self._prepared: dict[Path, Path] = {}  # Of each layer that is prepared, what it will be a copy of.
        self._difference: list[Region] | None = None
        self._pausing = anyio.Lock()
        self._killed = self._stays_paused = False

    @abstractmethod
    async def connect(self, timeout_s: float) -> None:
        """Return when the process has said who it is.

        Raises:
            VmmSilent: it did not in time.
            VmmFailed: it ended.
        """

    @abstractmethod
    async def _pause(self) -> None:
        """Have the guest stand still."""

    @abstractmethod
    async def _resume(self) -> None:
        """Have the guest run, if it does not.

        Raises:
            Refusal: it will not.
        """

    @abstractmethod
    async def _load(self, waiting: Waiting, capture: Capture) -> None:
        """Load `capture`, and run. Errors are as of `Restored.load`."""

    @abstractmethod
    def _format(self) -> CaptureFormat:
        """Return what this process stores and can load."""

    async def _wait_started(self) -> None:
        await self._api.wait_listening(self._process, self._timeouts.start_s)
        await self.connect(self._timeouts.command_s)

    # The process

    async def kill(self) -> None:
        self._killed = self._killed or not self._process.is_exited
        self._process.send_signal(signal.SIGKILL)
        self._forget_waiting()
        with anyio.CancelScope(shield=True):
            await self._process.wait_exited()
        if self._cell is not None:
            with suppress(FileNotFoundError):  # Whoever removed its folder has ended it before.
                self._cell.keep_out()

    def _keep_out(self) -> None:
        """Let a VMM whose guest is about to run make no files in its folder."""
        if self._cell is not None:
            try:
                self._cell.keep_out()
            except OSError as error:
                raise VmmFailed(f"the VMM's folder cannot be closed to it: {error}") from error

    async def detach(self) -> None:
        self._forget_waiting()
        self._process.close()

    def _forget_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def last_words(self) -> str:
        """Return the ends of its logs, such as there are."""
        found = (read_tail(self._folder / name).strip() for name in self.logs)
        return "\n".join(filter(None, found))

    async def resume(self) -> None:
        async with self._pausing:
            await self._resume()

    # Capture

    async def prepare_disk(self, new_top: Path) -> None:
        # Nothing is opened yet, and the VMM has no name for it.
        if not new_top.exists():
            raise VmmFailed(f"there is no {new_top.name}")
        self._prepared[new_top] = await self.top_layer()

    async def forget_disk(self, new_top: Path) -> None:
        if self._prepared.pop(new_top, None) is None:
            raise VmmFailed(f"{new_top.name} is not prepared, or in use")

    async def copy_ahead(self, target: Capture) -> int:
        return 0  # The VMM stores the memory itself, of a guest that stands still.

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        async with self._pausing:
            try:
                await self._pause()
                yield
            finally:
                if not self._stays_paused:
                    with anyio.CancelScope(shield=True):
                        await self._go_on()

    async def _go_on(self) -> None:
        try:
            await self._resume()
        except Refusal:
            await self._resume()  # Once more: nobody else will, and its guest would stand still for ever.

    def stay_paused(self) -> None:
        self._stays_paused = True

    async def copy_rest(self, target: Capture) -> int:
        if self._difference is None:
            return target.memory.resident_bytes  # Stored with the devices.
        (regions, pid), self._difference = (self._difference, self._process.pid), None
        # Only now: to store its devices a VMM writes to the guest's memory, such as that connections end.
        runs = await self._in_thread(lambda: find_changes(pid, regions))
        copied = await self._in_thread(lambda: copy_changes(pid, regions, runs, target.memory))
        target.changes = runs
        return copied

    async def _find_difference(self, target: Capture) -> list[Region] | None:
        """Return where the VMM maps the base that its guest stands on, if little of it differs."""
        base, pid = target.base, self._process.pid
        if base is None:
            return None
        regions = await self._in_thread(lambda: find_regions(pid, base.fd))
        if not covers(regions, await self._booted_bytes(base)):  # A balloon may have taken pieces out of it.
            return None
        runs = await self._in_thread(lambda: find_changes(pid, regions))
        is_little = sum(length for _, length in runs) <= base.resident_bytes * DIFFERENCE_RATIO_MAX
        return regions if is_little else None

    async def _booted_bytes(self, base: FilledOnce) -> int:
        """Return how much memory a guest has that was loaded from `base`, all mapped from it."""
        return base.size_bytes

    async def top_layer(self) -> Path:
        await self.is_paused()  # What a VMM has open that answers no more is of no use.
        return read_top_layer(self._process.pid, self._folder)

    async def collapse_disk(self, base: Path) -> None:
        await self.top_layer()  # A raw layer is the whole disk, of a VMM that is there.

    # Restore

    async def load(self, capture: Capture) -> None:
        try:
            capture.demand_format(self._format())
        except SnapshotIncompatible:
            await self.kill()
            raise
        waiting = self._waiting
        assert waiting is not None, "not started to wait"
        try:
            async with asyncio.timeout(self._timeouts.load_s):
                await self._in_thread(lambda: fill_disks(waiting.machine))
                await self._load(waiting, capture)
        except (VmmFailed, TimeoutError) as error:
            await self.kill()
            raise VmmFailed(
                f"{self.product} did not load the capture: {error} {self.last_words()}"
            ) from error
        self._forget_waiting()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await to_thread.run_sync(work)
        except OSError as error:
            raise VmmFailed(f"the guest's memory or disk cannot be handled: {error}") from error


V = TypeVar("V", bound=RestVm)


@asynccontextmanager
async def ended_unless_started(vm: RestVm) -> AsyncIterator[None]:
    """Have `vm` be gone if what is done inside fails."""
    try:
        yield
    except BaseException as error:
        await vm.kill()
        if isinstance(error, VmmFailed):
            raise VmmFailed(f"{vm.product} did not start: {error} {vm.last_words()}") from error
        raise


async def adopt(
    instance: InstanceId, runtime: Runtime, new_vm: Callable[[HeldProcess], V], timeout_s: float
) -> V:
    """Take hold of a VMM found on this host. Errors are as of `Driver.adopt`, and those of `new_vm`."""
    try:
        process = HeldProcess(runtime.pid, start_ticks=runtime.start_ticks)
    except ProcessLookupError as error:
        raise VmmFailed("the VMM is gone", instance=instance) from error
    try:
        vm = new_vm(process)
    except BaseException:
        process.close()
        raise
    try:
        await vm.connect(timeout_s)
    except BaseException as error:
        is_gone = process.is_exited
        with anyio.CancelScope(shield=True):
            await vm.detach()
        if isinstance(error, VmmFailed) and not is_gone:
            raise VmmSilent(f"the VMM cannot be taken hold of: {error}", instance=instance) from error
        raise
    return vm


async def end_process(runtime: Runtime) -> None:
    """End the process of `runtime`, which need not answer; return when it is gone. Idempotent."""
    try:
        process = HeldProcess(runtime.pid, start_ticks=runtime.start_ticks)
    except ProcessLookupError:
        return
    process.send_signal(signal.SIGKILL)
    await process.wait_exited()


def read_tail(log: Path) -> str:
    """Return the end of a log; nothing, if there is none."""
    try:
        with open(open_plain(log, os.O_RDONLY), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
