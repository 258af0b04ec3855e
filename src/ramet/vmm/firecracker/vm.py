"""One Firecracker process: boot, capture, load, and why it ended.

A capture is Firecracker's own snapshot, taken while the guest stands still. Of a guest that was loaded from a
file, what is its own is copied from outside, so that a difference is always one to that file.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import anyio
import structlog

from ramet.core.errors import RametError
from ramet.linux import netlink
from ramet.linux.clone import clone_file
from ramet.linux.filled_once import FilledOnce
from ramet.linux.memfd import SealableFile
from ramet.linux.pagecache import read_cached_bytes
from ramet.linux.process import HeldProcess
from ramet.linux.processor import read_processor
from ramet.vmm.append_only import append_only
from ramet.vmm.firecracker.backend import Backend, Choice, MemoryFacts
from ramet.vmm.firecracker.build import (
    AGENT_SOCKET,
    API_SOCKET,
    CONSOLE,
    DEVICE_MODEL,
    LOG,
    METRICS,
    NIC,
    OVERLAY_DRIVE,
    disk_limits_of,
    requests_of,
)
from ramet.vmm.firecracker.features import TRACK_DIRTY_PAGES, Release
from ramet.vmm.firecracker.limiters import limiters_of
from ramet.vmm.jail import Cell
from ramet.vmm.port import (
    Ballooned,
    Capture,
    CaptureFormat,
    ExitReason,
    Machine,
    SizeOutOfRange,
    VmmFailed,
)
from ramet.vmm.raw_overlay import OVERLAY_LINK, link_overlay, written_by
from ramet.vmm.rest import Api
from ramet.vmm.rest_vm import RestVm, Timeouts, Waiting, read_tail

NAME: Final = "firecracker"
ACCELERATOR: Final = "kvm"
_ENDED_WELL: Final = "exiting successfully"
_GUEST_SAID_GOODBYE: Final = "RAMET-GUEST exit "

log = structlog.get_logger(__name__)


class Pager(Protocol):
    """Who serves a guest's memory page by page: `ramet.pager.PagerService`, which tells what all this is."""

    @property
    def is_there(self) -> bool: ...

    async def open_session(
        self, session_id: str, base: Path, size_bytes: int, *, is_packed: bool, is_learned: bool
    ) -> Path: ...

    async def ready_session(self, session_id: str) -> None: ...

    async def close_session(self, session_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Restoring:
    """What a load takes into account: the pager, who chooses between it and the file, and places to load in.

    `is_first`: this instance was not started or loaded before.
    """

    pager: Pager | None
    choose: Choice
    places: anyio.Semaphore
    is_first: bool


class FirecrackerVm(RestVm, Ballooned):
    """One Firecracker process and its API."""

    product = "Firecracker"
    logs = (LOG, CONSOLE)

    def __init__(
        self, process: HeldProcess, folder: Path, timeouts: Timeouts, cell: Cell | None = None
    ) -> None:
        super().__init__(process, folder, timeouts, API_SOCKET, AGENT_SOCKET, cell)
        self.output_socket = self.agent_socket
        self._release: Release | None = None
        self._restoring: Restoring | None = None
        self._session: str | None = None
        self._knows_all_written = False  # Since the boot; the first snapshot makes it forget.

    async def connect(self, timeout_s: float) -> None:
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
        self._keep_out()
        await self._api.put("/actions", {"action_type": "InstanceStart"})
        self._knows_all_written = True

    async def wait_for(self, machine: Machine, capture: Capture, restoring: Restoring) -> None:
        """Have a process that has just been started wait for `capture`.

        Raises:
            VmmFailed: the process ended.
        """
        self._waiting, self._restoring = Waiting(machine, capture), restoring
        await self._wait_started()
        self._keep_out()

    async def _wait_started(self) -> None:
        await super()._wait_started()
        own = [self._folder / name for name in (LOG, METRICS)]
        await self._in_thread(lambda: append_only(self._process.pid, own))

    # The process

    async def wait_exited(self) -> ExitReason:
        await self._process.wait_exited()
        if self._killed:
            return ExitReason.KILLED
        if _ENDED_WELL not in read_tail(self._folder / LOG):
            return ExitReason.UNKNOWN
        # A guest has one way to end Firecracker, a reset; who means to power off says so before.
        if _GUEST_SAID_GOODBYE in read_tail(self._folder / CONSOLE):
            return ExitReason.GUEST_SHUTDOWN
        return ExitReason.GUEST_RESET

    async def is_paused(self) -> bool:
        return await self._api.get_text("/", "state") != "Running"

    async def _pause(self) -> None:
        await self._api.patch("/vm", {"state": "Paused"})

    async def _resume(self) -> None:
        await self._api.patch("/vm", {"state": "Resumed"})

    # Its size

    async def balloon_bytes(self) -> int:
        return _number(await self._api.get("/balloon"), "amount_mib") << 20

    async def demand_inflatable(self) -> None:
        return  # What it takes from a child it maps anew.

    async def set_balloon(self, balloon_bytes: int) -> None:
        # What it takes from a child it maps anew instead: the file, which others have too, stays as it is.
        booted_bytes = _number(await self._api.get("/machine-config"), "mem_size_mib") << 20
        if not 0 <= balloon_bytes < booted_bytes:
            raise SizeOutOfRange(f"it can give back less than {booted_bytes} bytes, not {balloon_bytes}")
        await self._api.patch("/balloon", {"amount_mib": balloon_bytes >> 20})

    # Capture

    async def switch_disk(self, new_top: Path) -> None:
        old_top = self._prepared[new_top]
        await self._in_thread(lambda: clone_file(old_top, new_top))
        cell = self._cell
        if cell is not None:
            await self._in_thread(lambda: cell.own(new_top))
        link_overlay(self._folder, new_top)
        try:
            await self._api.patch(
                f"/drives/{OVERLAY_DRIVE}", {"drive_id": OVERLAY_DRIVE, "path_on_host": OVERLAY_LINK}
            )
        except BaseException:
            link_overlay(self._folder, old_top)
            raise
        del self._prepared[new_top]
        if cell is not None:
            await self._in_thread(lambda: cell.disown(old_top))

    async def save_devices(self, target: Capture) -> None:
        self._difference = await self._find_difference(target)
        kind, self._knows_all_written = "Diff" if self._knows_all_written else "Full", False
        if self._difference is None:
            # What was never written is a hole of the file, which a whole would fill with zeros.
            await self._create_snapshot(target, kind, target.memory)
        else:
            # What has changed is copied by us: Firecracker knows only what did since its last snapshot.
            unused = SealableFile("ramet-unused", target.memory.size_bytes)
            try:
                await self._create_snapshot(target, "Diff", unused)
            finally:
                unused.close()
        target.format = self._format()

    async def _create_snapshot(self, target: Capture, kind: str, memory: FilledOnce) -> None:
        async with self._paths(target.devices.fd, memory.fd, are_written=True) as (devices_path, memory_path):
            body = {"snapshot_type": kind, "snapshot_path": devices_path, "mem_file_path": memory_path}
            await self._api.put("/snapshot/create", body)

    # The jail

    @asynccontextmanager
    async def _paths(self, *fds: int, are_written: bool = False) -> AsyncIterator[list[str]]:
        """Inside, the VMM can open our `fds` by the paths that are yielded."""
        if self._cell is None:
            yield [f"/proc/{os.getpid()}/fd/{fd}" for fd in fds]
            return
        reached = (self._cell.written if are_written else self._cell.reached)(*fds)
        paths = await self._in_thread(reached.__enter__)
        try:
            yield paths
        finally:
            with anyio.CancelScope(shield=True):
                await self._in_thread(lambda: reached.__exit__(None, None, None))

    def _let_in(self, cell: Cell, waiting: Waiting, capture: Capture) -> None:
        for path in written_by(waiting.machine):
            cell.own(path)
        cell.let_read(capture.devices.fd)
        cell.let_in()

    # Restore

    async def load(self, capture: Capture) -> None:
        assert self._restoring is not None, "not started to wait"
        async with self._restoring.places:
            await super().load(capture)

    async def note_ready(self) -> None:
        if self._session is None or self._restoring is None or self._restoring.pager is None:
            return
        try:
            await self._restoring.pager.ready_session(self._session)
        except RametError as error:  # Other guests are served as if none had been loaded before.
            log.info("working_set_not_noted", session=self._session, error=str(error))

    async def _load(self, waiting: Waiting, capture: Capture) -> None:
        cell = self._cell
        if cell is not None:
            await self._in_thread(lambda: self._let_in(cell, waiting, capture))
        pager = await self._choose_pager(waiting, capture)
        # Another process of this instance may have a session still: the pager notices an end by itself.
        session = f"{waiting.machine.instance}-{self._process.pid}"
        path = None if pager is None else await self._open_session(pager, session, waiting, capture)
        if pager is None or path is None:
            await self._load_file(waiting, capture)
            return
        try:
            if cell is None:
                await self._load_from(waiting, capture, "Uffd", str(path))
            else:
                await self._load_paged(cell, waiting, capture, path)
        except BaseException:
            with anyio.CancelScope(shield=True), suppress(RametError):  # It ends with its VMM as well.
                await pager.close_session(session)
            raise
        self._session = session

    async def _choose_pager(self, waiting: Waiting, capture: Capture) -> Pager | None:
        """Return the pager, if it is to serve the memory."""
        restoring = self._restoring
        if restoring is None or restoring.pager is None or waiting.runs:  # Changes are laid over a file.
            return None
        facts = MemoryFacts(0.0, is_packed=capture.is_packed, is_first=restoring.is_first)
        if not capture.is_packed:
            mapped = capture.mapped
            cached_bytes = await self._in_thread(lambda: read_cached_bytes(mapped.fd))
            resident_bytes = mapped.resident_bytes
            facts = replace(facts, cached_ratio=cached_bytes / resident_bytes if resident_bytes else 1.0)
        return restoring.pager if restoring.choose(facts) is Backend.UFFD else None

    async def _open_session(
        self, pager: Pager, session: str, waiting: Waiting, capture: Capture
    ) -> Path | None:
        """Return the socket of a new session; None: the memory is to be mapped instead.

        Raises:
            VmmFailed: it is packed, and cannot be mapped.
        """
        is_learned = self._restoring is not None and self._restoring.is_first
        try:
            return await pager.open_session(
                session,
                Path(capture.memory.path),
                waiting.machine.memory_bytes,
                is_packed=capture.is_packed,
                is_learned=is_learned,
            )
        except RametError as error:
            if capture.is_packed:
                raise VmmFailed(f"no pager serves its memory: {error}") from error
            log.warning("pager_not_used", session=session, error=str(error))
            return None

    async def _load_file(self, waiting: Waiting, capture: Capture) -> None:
        if waiting.inherited_fd >= 0:
            await self._load_from(waiting, capture, "File", f"/proc/self/fd/{waiting.inherited_fd}")
        elif capture.is_packed:
            raise VmmFailed("its memory is packed, and there is no pager")
        else:  # It was packed when this process was started.
            async with self._paths(capture.mapped.fd) as (path,):
                await self._load_from(waiting, capture, "File", path)

    async def _load_paged(self, cell: Cell, waiting: Waiting, capture: Capture, path: Path) -> None:
        try:
            socket_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                os.chown(path, cell.uid, cell.uid)
                async with self._paths(socket_fd) as (reached,):
                    await self._load_from(waiting, capture, "Uffd", reached)
            finally:
                os.close(socket_fd)
        except OSError as error:
            raise VmmFailed(f"the pager's socket cannot be given to the VMM: {error}") from error

    async def _load_from(self, waiting: Waiting, capture: Capture, backend: str, path: str) -> None:
        release, nic = self._demand_release(), waiting.machine.nic
        stands_still = bool(waiting.runs) or self._cell is not None
        tracking = "track_dirty_pages" if release.has(TRACK_DIRTY_PAGES) else "enable_diff_snapshots"
        body: dict[str, object] = {
            "mem_backend": {"backend_type": backend, "backend_path": path},
            tracking: True,
            "resume_vm": not stands_still,
        }
        if nic is not None:
            body["network_overrides"] = [{"iface_id": NIC, "host_dev_name": nic.tap_name}]
            if waiting.runs:
                await self._in_thread(lambda: _set_link(nic.tap_name, is_up=False))
        async with self._paths(capture.devices.fd) as (devices_path,):
            body["snapshot_path"] = devices_path
            await self._api.put("/snapshot/load", body, self._timeouts.load_s)
        self._keep_out()
        if nic is not None and nic.limits is not None:
            # Until here it had its source's, who may have had others: a guest that runs is quarantined still.
            await self._api.patch(f"/network-interfaces/{NIC}", {"iface_id": NIC, **limiters_of(nic.limits)})
        for path, limit in disk_limits_of(waiting.machine):
            await self._api.patch(path, limit)
        if waiting.runs:
            await self._in_thread(lambda: waiting.lay_over(self._process.pid))
            if nic is not None:
                await self._in_thread(lambda: _set_link(nic.tap_name, is_up=True))
        if stands_still:
            await self._resume()

    def _format(self) -> CaptureFormat:
        text = self._demand_release().text
        return CaptureFormat(NAME, text, DEVICE_MODEL, ACCELERATOR, read_processor())

    def _demand_release(self) -> Release:
        assert self._release is not None, "connect() comes first"
        return self._release


def _set_link(tap_name: str | None, *, is_up: bool) -> None:
    """Set a TAP up or down, for as long as its guest's memory is not what the card's state says.

    Firecracker hands on what comes to a TAP also while its guest stands still, and looks into its memory for
    where to: into that of an earlier sleep, before what has changed since is laid over it. From then on the
    guest would hear nothing.

    Raises:
        OSError: the kernel refused, or it is gone.
    """
    assert tap_name is not None, "firecracker opens its TAP by name"
    index = netlink.interface_index(tap_name)
    with netlink.RouteSocket() as route:
        route.apply([netlink.set_up(index) if is_up else netlink.set_down(index)])


def _number(answer: dict[str, object], name: str) -> int:
    found = answer.get(name)
    if not isinstance(found, int):
        raise VmmFailed(f"the VMM's answer has no {name}")
    return found
