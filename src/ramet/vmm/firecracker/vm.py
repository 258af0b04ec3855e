"""One Firecracker process: boot, capture, load, and why it ended.

A capture is Firecracker's own snapshot, taken while the guest stands still. Of a guest that was loaded from a
file, what is its own is copied from outside, so that a difference is always one to that file.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import anyio
from anyio import to_thread

from ramet.core.errors import RametError
from ramet.core.spec import Runtime
from ramet.linux.clone import clone_file
from ramet.linux.memfd import SealableFile
from ramet.linux.pagemap import PageRuns
from ramet.linux.process import HeldProcess, read_boot_id
from ramet.linux.processor import read_processor
from ramet.vmm.firecracker.api import COMMAND_TIMEOUT_S, Api
from ramet.vmm.firecracker.build import (
    AGENT_SOCKET,
    API_SOCKET,
    CONSOLE,
    DEVICE_MODEL,
    LOG,
    METRICS,
    NIC,
    OVERLAY_DRIVE,
    OVERLAY_LINK,
    layers_of,
    requests_of,
)
from ramet.vmm.firecracker.features import CLOCK_REALTIME, TRACK_DIRTY_PAGES, Release
from ramet.vmm.firecracker.limiters import limiters_of
from ramet.vmm.firecracker.logs import append_only
from ramet.vmm.firecracker.memory import Region, copy_changes, find_changes, find_regions, lay_over
from ramet.vmm.port import (
    Capture,
    CaptureFormat,
    ExitReason,
    LiveCapture,
    Machine,
    Restored,
    SnapshotIncompatible,
    VmmFailed,
)

T = TypeVar("T")

NAME: Final = "firecracker"
ACCELERATOR: Final = "kvm"
DIFFERENCE_RATIO_MAX: Final = 0.25
"""Of a file's memory: what differs more is stored as a whole."""
TAIL_BYTES: Final = 4096
_ENDED_WELL: Final = "exiting successfully"
_GUEST_SAID_GOODBYE: Final = "RAMET-GUEST exit "


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long Firecracker may take, in seconds, before it counts as failed."""

    start_s: float = 30.0
    adopt_s: float = 10.0
    load_s: float = 60.0
    command_s: float = COMMAND_TIMEOUT_S


class Pager(Protocol):
    """Who serves a guest's memory page by page: `ramet.pager.PagerClient`."""

    async def open_session(self, session_id: str, base: Path, size_bytes: int) -> Path:
        """Return the socket that the VMM is to connect to."""

    async def close_session(self, session_id: str) -> bool:
        """End a session."""


class _Waiting:
    """What a VMM that waits will need: its machine, the memory it was started for, changes to that."""

    def __init__(self, machine: Machine, capture: Capture) -> None:
        self.machine = machine
        self.inherited_fd = capture.mapped.fd
        self.memory_fd = os.dup(capture.mapped.fd)
        # Who loads later may have the same memory in another form, without changes.
        self.runs: PageRuns = capture.changes or ()
        self.changes_fd = os.dup(capture.memory.fd) if self.runs else -1

    def close(self) -> None:
        for fd in (self.memory_fd, self.changes_fd):
            if fd >= 0:
                os.close(fd)
        self.memory_fd = self.changes_fd = -1


class FirecrackerVm(LiveCapture, Restored):
    """One Firecracker process and its API."""

    def __init__(self, process: HeldProcess, folder: Path, timeouts: Timeouts) -> None:
        self.runtime = Runtime(process.pid, process.start_ticks, read_boot_id(), {})
        self.agent_socket = folder / AGENT_SOCKET
        self._process, self._folder, self._timeouts = process, folder, timeouts
        self._api = Api(folder, API_SOCKET, timeouts.command_s)
        self._release: Release | None = None
        self._pager: Pager | None = None
        self._waiting: _Waiting | None = None
        self._prepared: dict[Path, Path] = {}  # Of each layer that is prepared, what it will be a copy of.
        self._difference: tuple[list[Region], PageRuns] | None = None
        self._knows_all_written = False  # Since the boot; the first snapshot makes it forget.
        self._pausing = anyio.Lock()
        self._killed = self._stays_paused = False

    async def connect(self, timeout_s: float) -> None:
        """Return when the process has said who it is.

        Raises:
            VmmSilent: it did not in time.
            VmmFailed: it ended.
        """
        asked = Api(self._folder, API_SOCKET, timeout_s)
        self._release = Release.named(await asked.get_text("/version", "firecracker_version"))

    async def start(self, machine: Machine) -> None:
        """Boot `machine` in a process that has just been started.

        Raises:
            VmmFailed: it was refused, or the process ended.
        """
        await self._wait_started()
        for path, body in requests_of(machine):
            await self._api.put(path, body)
        await self._api.put("/actions", {"action_type": "InstanceStart"})
        self._knows_all_written = True

    async def wait_for(self, machine: Machine, capture: Capture, pager: Pager | None) -> None:
        """Have a process that has just been started wait for `capture`.

        Raises:
            VmmFailed: the process ended.
        """
        self._waiting, self._pager = _Waiting(machine, capture), pager
        await self._wait_started()

    async def _wait_started(self) -> None:
        await self._api.wait_listening(self._process, self._timeouts.start_s)
        await self.connect(self._timeouts.start_s)
        own = [self._folder / name for name in (LOG, METRICS)]
        await self._in_thread(lambda: append_only(self._process.pid, own))

    # The process

    async def wait_exited(self) -> ExitReason:
        await self._process.wait_exited()
        if self._killed:
            return ExitReason.KILLED
        if _ENDED_WELL not in _tail(self._folder / LOG):
            return ExitReason.UNKNOWN
        # A guest has one way to end Firecracker, a reset; who means to power off says so before.
        if _GUEST_SAID_GOODBYE in _tail(self._folder / CONSOLE):
            return ExitReason.GUEST_SHUTDOWN
        return ExitReason.GUEST_RESET

    async def kill(self) -> None:
        self._killed = self._killed or not self._process.is_exited
        self._process.send_signal(signal.SIGKILL)
        self._forget_waiting()
        with anyio.CancelScope(shield=True):
            await self._process.wait_exited()

    async def detach(self) -> None:
        self._forget_waiting()
        self._process.close()

    def _forget_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def last_words(self) -> str:
        """Return the ends of its log and of what it and its guest printed, such as there is."""
        found = (_tail(self._folder / name).strip() for name in (LOG, CONSOLE))
        return "\n".join(filter(None, found))

    async def is_paused(self) -> bool:
        return await self._api.get_text("/", "state") != "Running"

    async def resume(self) -> None:
        async with self._pausing:
            await self._api.patch("/vm", {"state": "Resumed"})

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
        return 0  # Firecracker stores the memory itself, of a guest that stands still.

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        async with self._pausing:
            try:
                await self._api.patch("/vm", {"state": "Paused"})
                yield
            finally:
                if not self._stays_paused:
                    with anyio.CancelScope(shield=True):
                        await self._api.patch("/vm", {"state": "Resumed"})

    def stay_paused(self) -> None:
        self._stays_paused = True

    async def switch_disk(self, new_top: Path) -> None:
        old_top = self._prepared[new_top]
        await self._in_thread(lambda: clone_file(old_top, new_top))
        _link_overlay(self._folder, new_top)
        try:
            await self._api.patch(
                f"/drives/{OVERLAY_DRIVE}", {"drive_id": OVERLAY_DRIVE, "path_on_host": OVERLAY_LINK}
            )
        except BaseException:
            _link_overlay(self._folder, old_top)
            raise
        del self._prepared[new_top]

    async def save_devices(self, target: Capture) -> None:
        self._difference = await self._find_difference(target)
        kind, self._knows_all_written = "Diff" if self._knows_all_written else "Full", False
        if self._difference is None:
            # What was never written is a hole of the file, which a whole would fill with zeros.
            await self._create_snapshot(target, kind, target.memory.path)
        else:
            # What has changed is copied by us: Firecracker knows only what did since its last snapshot.
            unused = SealableFile("ramet-unused", target.memory.size_bytes)
            try:
                await self._create_snapshot(target, "Diff", unused.path)
            finally:
                unused.close()
        target.format = self._format()

    async def copy_rest(self, target: Capture) -> int:
        if self._difference is None:
            return target.memory.resident_bytes  # Stored with the devices.
        (regions, runs), self._difference = self._difference, None
        copied = await self._in_thread(lambda: copy_changes(self._process.pid, regions, runs, target.memory))
        target.changes = runs
        return copied

    async def _create_snapshot(self, target: Capture, kind: str, memory_path: str) -> None:
        body = {"snapshot_type": kind, "snapshot_path": target.devices.path, "mem_file_path": memory_path}
        await self._api.put("/snapshot/create", body)

    async def _find_difference(self, target: Capture) -> tuple[list[Region], PageRuns] | None:
        """Return where the guest's memory differs from the base that it stands on, if that is little."""
        base, pid = target.base, self._process.pid
        if base is None:
            return None
        regions = await self._in_thread(lambda: find_regions(pid, base.fd))
        if not regions:
            return None
        runs = await self._in_thread(lambda: find_changes(pid, regions))
        is_little = sum(length for _, length in runs) <= base.resident_bytes * DIFFERENCE_RATIO_MAX
        return (regions, runs) if is_little else None

    async def top_layer(self) -> Path:
        await self._api.get("/")  # What a VMM has open that answers no more is of no use.
        layers = os.path.dirname(os.path.realpath(self._folder / OVERLAY_LINK))
        found = [path for path in _written_files(self._process.pid) if os.path.dirname(path) == layers]
        if len(found) != 1:
            raise VmmFailed(f"Firecracker has {len(found)} disks open that may be the overlay")
        return Path(found[0])

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
                await self._in_thread(lambda: fill_overlay(waiting.machine))
                await self._load(waiting, capture)
        except (VmmFailed, TimeoutError) as error:
            await self.kill()
            raise VmmFailed(f"Firecracker did not load the capture: {error} {self.last_words()}") from error
        self._forget_waiting()

    async def _load(self, waiting: _Waiting, capture: Capture) -> None:
        pager, session = self._pager, waiting.machine.instance
        if pager is None or waiting.runs:  # Changes are laid over a file.
            await self._load_from(waiting, capture, "File", f"/proc/self/fd/{waiting.inherited_fd}")
            return
        try:
            path = await pager.open_session(session, Path(capture.mapped.path), capture.mapped.size_bytes)
        except RametError as error:
            raise VmmFailed(f"no pager serves its memory: {error}") from error
        try:
            await self._load_from(waiting, capture, "Uffd", str(path))
        except BaseException:
            with anyio.CancelScope(shield=True), suppress(RametError):  # It ends with its VMM as well.
                await pager.close_session(session)
            raise

    async def _load_from(self, waiting: _Waiting, capture: Capture, backend: str, path: str) -> None:
        release, nic = self._demand_release(), waiting.machine.nic
        tracking = "track_dirty_pages" if release.has(TRACK_DIRTY_PAGES) else "enable_diff_snapshots"
        body: dict[str, object] = {
            "snapshot_path": capture.devices.path,
            "mem_backend": {"backend_type": backend, "backend_path": path},
            tracking: True,
            "resume_vm": not waiting.runs,
        }
        if nic is not None:
            body["network_overrides"] = [{"iface_id": NIC, "host_dev_name": nic.tap_name}]
        if release.has(CLOCK_REALTIME):
            body["clock_realtime"] = True
        await self._api.put("/snapshot/load", body, self._timeouts.load_s)
        if nic is not None and nic.limits is not None:
            # Until here it had its source's, who may have had others: a guest that runs is quarantined still.
            await self._api.patch(f"/network-interfaces/{NIC}", {"iface_id": NIC, **limiters_of(nic.limits)})
        if waiting.runs:
            await self._in_thread(lambda: _lay_over(self._process.pid, waiting))
            await self._api.patch("/vm", {"state": "Resumed"})

    def _format(self) -> CaptureFormat:
        text = self._demand_release().text
        return CaptureFormat(NAME, text, DEVICE_MODEL, ACCELERATOR, read_processor())

    def _demand_release(self) -> Release:
        assert self._release is not None, "connect() comes first"
        return self._release

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await to_thread.run_sync(work)
        except OSError as error:
            raise VmmFailed(f"the guest's memory or disk cannot be handled: {error}") from error


def fill_overlay(machine: Machine) -> None:
    """Have the overlay of `machine` be a copy of what it stands on, and its folder's link lead to it.

    Raises:
        OSError: there is no room.
    """
    top, below = layers_of(machine.overlay)
    if below is not None and top.stat().st_size == 0:
        clone_file(below, top)
    _link_overlay(machine.folder, top)


def _link_overlay(folder: Path, layer: Path) -> None:
    link = folder / OVERLAY_LINK
    part = link.with_suffix(".part")
    part.unlink(missing_ok=True)
    part.symlink_to(layer)
    part.rename(link)


def _lay_over(pid: int, waiting: _Waiting) -> int:
    regions = find_regions(pid, waiting.memory_fd)
    return lay_over(pid, regions, waiting.changes_fd, waiting.runs)


def _written_files(pid: int) -> list[str]:
    """Return the paths of the files that `pid` has open to write.

    Raises:
        VmmFailed: it is gone.
    """
    found: list[str] = []
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError), open(f"/proc/{pid}/fdinfo/{fd}") as info:
                flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
                if flags & os.O_ACCMODE == os.O_RDWR:
                    found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise VmmFailed("the VMM is gone") from error
    return found


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
