"""One Cloud Hypervisor process: boot, capture, load, and why it ended.

A capture is Cloud Hypervisor's own snapshot, taken while the guest stands still. A child's memory is a
private mapping of the capture's file; what is its own is copied from outside when it is captured itself.
"""

import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio

from ramet.linux.clone import clone_file
from ramet.linux.exchange import exchange_files
from ramet.linux.filled_once import FilledOnce
from ramet.linux.inotify import watch_writes
from ramet.linux.process import HeldProcess
from ramet.linux.processor import read_processor
from ramet.vmm.append_only import append_only
from ramet.vmm.cloud_hypervisor.build import (
    AGENT_SOCKET,
    API_SOCKET,
    CONSOLE,
    DEVICE_MODEL,
    EVENTS,
    LOG,
    NIC,
    ZONE,
    card_of,
    config_of,
)
from ramet.vmm.cloud_hypervisor.features import Release
from ramet.vmm.cloud_hypervisor.size import MIB, Size
from ramet.vmm.cloud_hypervisor.snapshot import Snapshot, copy_memory
from ramet.vmm.jail import Cell
from ramet.vmm.port import (
    Ballooned,
    Capture,
    CaptureFormat,
    ExitReason,
    Machine,
    Resizable,
    Sizes,
    VmmFailed,
)
from ramet.vmm.raw_overlay import link_overlay, written_by
from ramet.vmm.rest import Api, Refusal
from ramet.vmm.rest_vm import RestVm, Timeouts, Waiting, read_tail

NAME: Final = "cloud-hypervisor"
ACCELERATOR: Final = "kvm"
_API: Final = "/api/v1"
_CAPTURE_FOLDER: Final = "capture"
_LOAD_FOLDER: Final = "load"
_ENDED_WELL: Final = "exited successfully"
_RESET: Final = b'"rebooting"'


class CloudHypervisorVm(RestVm, Resizable, Ballooned):
    """One Cloud Hypervisor process and its API."""

    product = "Cloud Hypervisor"
    logs = (LOG, CONSOLE)

    def __init__(
        self, process: HeldProcess, folder: Path, timeouts: Timeouts, cell: Cell | None = None
    ) -> None:
        super().__init__(process, folder, timeouts, API_SOCKET, AGENT_SOCKET, cell)
        self.output_socket = self.agent_socket
        self._release: Release | None = None

    async def connect(self, timeout_s: float) -> None:
        asked = Api(self._folder, API_SOCKET, timeout_s)
        self._release = Release.named(await asked.get_text(f"{_API}/vmm.ping", "build_version"))

    async def start(self, machine: Machine) -> None:
        """Boot `machine` in a process that has just been started.

        Raises:
            VmmFailed: it was refused, or the process ended.
        """
        await self._wait_started()
        await self._ask("vm.create", config_of(machine))
        nic = machine.nic
        if nic is not None:
            await self._ask("vm.add-net", card_of(nic), [nic.tap_fd] if nic.tap_fd >= 0 else [])
        await self._ask("vm.boot")  # Makes its guest's socket, and lets that run.
        self._keep_out()
        await self._bound_logs()

    async def wait_for(self, machine: Machine, capture: Capture) -> None:
        """Have a process that has just been started wait for `capture`.

        Raises:
            VmmFailed: the process ended.
        """
        self._waiting = Waiting(machine, capture)
        await self._wait_started()
        self._keep_out()

    async def _ask(
        self,
        action: str,
        body: dict[str, Any] | None = None,
        passed: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> None:
        await self._api.put(f"{_API}/{action}", body, timeout_s, passed)

    async def _bound_logs(self) -> None:
        """Have the files that it opens itself be such that somebody may cut them short."""
        own = [self._folder / name for name in (CONSOLE, EVENTS)]
        await self._in_thread(lambda: append_only(self._process.pid, own))

    # The process

    async def wait_exited(self) -> ExitReason:
        was_reset = await self._wait_exited_or_reset()
        await self._process.wait_exited()
        if was_reset:
            return ExitReason.GUEST_RESET
        if self._killed:
            return ExitReason.KILLED
        ended_well = _ENDED_WELL in read_tail(self._folder / LOG)
        return ExitReason.GUEST_SHUTDOWN if ended_well else ExitReason.UNKNOWN

    async def _wait_exited_or_reset(self) -> bool:
        """Return when the process is gone or its guest has reset itself, and tell which.

        A reset guest would be booted once more in the same process, so that is ended.
        """
        if not self._process.is_exited:
            events = self._folder / EVENTS
            with watch_writes(events) as written, self._process.when_exited(written.tell):
                while not self._process.is_exited and not self._is_reset():
                    await written.wait()
            if not self._process.is_exited:
                self._process.send_signal(signal.SIGKILL)
                return True
        return not self._killed and self._is_reset()

    def _is_reset(self) -> bool:
        events = self._folder / EVENTS
        return events.exists() and _RESET in events.read_bytes()

    async def is_paused(self) -> bool:
        try:
            return await self._api.get_text(f"{_API}/vm.info", "state") != "Running"
        except Refusal:
            return True  # It waits, and has no guest yet.

    async def _pause(self) -> None:
        await self._ask("vm.pause")

    async def _resume(self) -> None:
        # One that runs refuses it.
        if await self.is_paused():
            await self._ask("vm.resume")

    # Its size

    async def sizes(self) -> Sizes:
        return (await self._size()).sizes

    async def resize(self, vcpu_count: int | None = None, memory_bytes: int | None = None) -> None:
        async with self._pausing:
            size = await self._size()
            if vcpu_count is not None:
                size.demand_vcpu_count(vcpu_count)
            if memory_bytes is not None:
                size.demand_memory(memory_bytes)
            if vcpu_count not in (None, size.sizes.vcpu_count):
                await self._ask("vm.resize", {"desired_vcpus": vcpu_count})
            if memory_bytes not in (None, size.sizes.memory_bytes):  # It refuses what it has.
                await self._ask("vm.resize-zone", {"id": ZONE, "desired_ram": memory_bytes})

    async def balloon_bytes(self) -> int:
        return (await self._size()).balloon_bytes

    async def demand_inflatable(self) -> None:
        (await self._size()).demand_balloon(1)

    async def set_balloon(self, balloon_bytes: int) -> None:
        async with self._pausing:
            (await self._size()).demand_balloon(balloon_bytes)
            await self._ask("vm.resize", {"desired_balloon": balloon_bytes // MIB * MIB})

    async def _size(self) -> Size:
        return Size.told(await self._api.get(f"{_API}/vm.info"))

    # Capture

    async def _booted_bytes(self, base: FilledOnce) -> int:
        return (await self.sizes()).memory_bytes_min

    async def switch_disk(self, new_top: Path) -> None:
        # It cannot be told to write to another file. So it keeps its file, and the copy takes the name of the
        # layer that is frozen.
        old_top = self._prepared[new_top]

        def switch() -> None:
            clone_file(old_top, new_top)
            if self._cell is not None:
                new_top.chmod(0o600)  # It is frozen next, and nobody's to read who is in a jail.
            exchange_files(old_top, new_top)
            try:
                link_overlay(self._folder, new_top)
            except BaseException:
                exchange_files(old_top, new_top)  # It is not switched: its file has its name again.
                raise

        await self._in_thread(switch)
        del self._prepared[new_top]

    async def save_devices(self, target: Capture) -> None:
        self._difference = await self._find_difference(target)  # Looked at again when it is stored.
        async with self._folder_for_a_while(_CAPTURE_FOLDER) as folder:
            cell = self._cell
            if cell is not None:
                await self._in_thread(lambda: cell.own(folder, mode=0o700))
            await self._ask("vm.snapshot", {"destination_url": f"file://{_CAPTURE_FOLDER}"})
            await self._in_thread(lambda: self._keep(folder, target))
        target.format = self._format()

    def _keep(self, folder: Path, target: Capture) -> None:
        if self._cell is not None:
            self._cell.disown(folder)  # What has which name in there stays as it is from here on.
        try:
            snapshot = Snapshot.read_folder(folder)
            snapshot.write(target.devices)
            if snapshot.plugged_bytes:
                self._difference = None  # There is no file under what was plugged in.
            if self._difference is None:
                copy_memory(folder, snapshot.memory_bytes, target.memory)
        except ValueError as error:
            raise VmmFailed(f"what the VMM has stored makes no sense: {error}") from error

    # Restore

    async def _load(self, waiting: Waiting, capture: Capture) -> None:
        memory = f"/proc/self/fd/{waiting.inherited_fd}"
        snapshot = Snapshot.read(capture.devices).for_child(waiting.machine, memory)
        body: dict[str, Any] = {"source_url": f"file://{_LOAD_FOLDER}", "prefault": False}
        if snapshot.has_card_by_descriptor:
            body["net_fds"] = [{"id": NIC, "num_fds": 1}]
        passed = [waiting.tap_fd] if snapshot.has_card_by_descriptor else []
        async with self._folder_for_a_while(_LOAD_FOLDER) as folder:
            await self._in_thread(lambda: self._let_in(snapshot.write_folder(folder, memory), waiting))
            await self._ask("vm.restore", body, passed, self._timeouts.load_s)
        self._keep_out()
        await self._bound_logs()
        if waiting.runs:
            await self._in_thread(lambda: waiting.lay_over(self._process.pid))
        await self._ask("vm.resume")

    def _let_in(self, stored: list[Path], waiting: Waiting) -> None:
        """Let one that is about to load read what is `stored` for it, and make its guest's socket."""
        cell = self._cell
        if cell is not None:
            for path in written_by(waiting.machine):
                cell.own(path)
            for path in stored:
                cell.let_pass(path.parent)
                cell.let_read(path)
            cell.let_in()

    def _format(self) -> CaptureFormat:
        assert self._release is not None, "connect() comes first"
        return CaptureFormat(NAME, self._release.text, DEVICE_MODEL, ACCELERATOR, read_processor())

    @asynccontextmanager
    async def _folder_for_a_while(self, name: str) -> AsyncIterator[Path]:
        """Inside, there is an empty folder for a snapshot; one that an earlier daemon left is gone."""
        folder = self._folder / name
        await self._in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))
        await self._in_thread(folder.mkdir)
        try:
            yield folder
        finally:
            with anyio.CancelScope(shield=True):
                await self._in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))
