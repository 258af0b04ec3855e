"""One Firecracker process: boot, capture, load, and why it ended.

A capture is Firecracker's own snapshot, taken while the guest stands still. Of a guest that was loaded from a
file, what is its own is copied from outside, so that a difference is always one to that file.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import anyio

from ramet.core.errors import RametError
from ramet.linux.clone import clone_file
from ramet.linux.memfd import SealableFile
from ramet.linux.process import HeldProcess
from ramet.linux.processor import read_processor
from ramet.vmm.append_only import append_only
from ramet.vmm.firecracker.build import (
    AGENT_SOCKET,
    API_SOCKET,
    CONSOLE,
    DEVICE_MODEL,
    LOG,
    METRICS,
    NIC,
    OVERLAY_DRIVE,
    requests_of,
)
from ramet.vmm.firecracker.features import CLOCK_REALTIME, TRACK_DIRTY_PAGES, Release
from ramet.vmm.firecracker.limiters import limiters_of
from ramet.vmm.port import Capture, CaptureFormat, ExitReason, Machine, VmmFailed
from ramet.vmm.raw_overlay import OVERLAY_LINK, link_overlay
from ramet.vmm.rest import Api
from ramet.vmm.rest_vm import RestVm, Timeouts, Waiting, read_tail

NAME: Final = "firecracker"
ACCELERATOR: Final = "kvm"
_ENDED_WELL: Final = "exiting successfully"
_GUEST_SAID_GOODBYE: Final = "RAMET-GUEST exit "


class Pager(Protocol):
    """Who serves a guest's memory page by page: `ramet.pager.PagerClient`."""

    async def open_session(self, session_id: str, base: Path, size_bytes: int) -> Path:
        """Return the socket that the VMM is to connect to."""

    async def close_session(self, session_id: str) -> bool:
        """End a session."""


class FirecrackerVm(RestVm):
    """One Firecracker process and its API."""

    product = "Firecracker"
    logs = (LOG, CONSOLE)

    def __init__(self, process: HeldProcess, folder: Path, timeouts: Timeouts) -> None:
        super().__init__(process, folder, timeouts, API_SOCKET, AGENT_SOCKET)
        self.output_socket = self.agent_socket
        self._release: Release | None = None
        self._pager: Pager | None = None
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
        await self._api.put("/actions", {"action_type": "InstanceStart"})
        self._knows_all_written = True

    async def wait_for(self, machine: Machine, capture: Capture, pager: Pager | None) -> None:
        """Have a process that has just been started wait for `capture`.

        Raises:
            VmmFailed: the process ended.
        """
        self._waiting, self._pager = Waiting(machine, capture), pager
        await self._wait_started()

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

    # Capture

    async def switch_disk(self, new_top: Path) -> None:
        old_top = self._prepared[new_top]
        await self._in_thread(lambda: clone_file(old_top, new_top))
        link_overlay(self._folder, new_top)
        try:
            await self._api.patch(
                f"/drives/{OVERLAY_DRIVE}", {"drive_id": OVERLAY_DRIVE, "path_on_host": OVERLAY_LINK}
            )
        except BaseException:
            link_overlay(self._folder, old_top)
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

    async def _create_snapshot(self, target: Capture, kind: str, memory_path: str) -> None:
        body = {"snapshot_type": kind, "snapshot_path": target.devices.path, "mem_file_path": memory_path}
        await self._api.put("/snapshot/create", body)

    # Restore

    async def _load(self, waiting: Waiting, capture: Capture) -> None:
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

    async def _load_from(self, waiting: Waiting, capture: Capture, backend: str, path: str) -> None:
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
            await self._in_thread(lambda: waiting.lay_over(self._process.pid))
            await self._api.patch("/vm", {"state": "Resumed"})

    def _format(self) -> CaptureFormat:
        text = self._demand_release().text
        return CaptureFormat(NAME, text, DEVICE_MODEL, ACCELERATOR, read_processor())

    def _demand_release(self) -> Release:
        assert self._release is not None, "connect() comes first"
        return self._release
