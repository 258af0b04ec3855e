"""QEMU, on one of its boards.

Each VMM is a process with a session of its own. Its two sockets are bound by us before it starts, so that
connecting never waits for a file to appear; after a restart of the daemon they are found by path.
Live capture and fork need nothing special of QEMU: see `ramet.vmm.qemu.memory` for the memory,
`xen-save-devices-state` (which works on every machine) for the devices, `blockdev-snapshot` for the disk.
"""

import asyncio
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import anyio
import structlog
from anyio import to_thread

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.core.spec import Runtime
from ramet.linux import kvm
from ramet.linux.filled_once import FilledOnce
from ramet.linux.pagemap import PageRuns
from ramet.linux.plain_file import open_plain
from ramet.linux.process import HeldProcess, list_command_lines, read_boot_id, read_start_ticks
from ramet.linux.processor import read_processor
from ramet.linux.writewatch import prepared
from ramet.vmm.port import (
    Ballooned,
    Capture,
    CaptureFormat,
    ExitReason,
    LiveCapture,
    LiveFork,
    Machine,
    Restored,
    SnapshotIncompatible,
    VmmFailed,
    VmmSilent,
    VmmUnsupported,
)
from ramet.vmm.qemu.balloon import Balloon
from ramet.vmm.qemu.board import Q35, Board
from ramet.vmm.qemu.command import (
    LAYER_NODE_PREFIX,
    NAME_PREFIX,
    OVERLAY_DEVICE,
    Sockets,
    command_line,
    file_node,
    node_name,
)
from ramet.vmm.qemu.disk_limit import limit_disks
from ramet.vmm.qemu.memory import Copier, find_guest_memory, lay_over
from ramet.vmm.qemu.monitor import COMMAND_TIMEOUT_S, Monitor

log = structlog.get_logger(__name__)

PROGRAM: Final = "qemu-system-x86_64"
LOG_TAIL_BYTES: Final = 2000
EXIT_SEEN_TIMEOUT_S: Final = 0.5
_OPTIONS: Final = {"-name", "-M", "-m", "-accel"}
WRITE_OUT_COUNT: Final = 2  # A guest that writes all the time has little left to write out the second time.
SOCKET_PATH_BYTES_MAX: Final = 107  # unix(7)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long QEMU may take, in seconds, before it counts as failed."""

    start_s: float = 30.0
    adopt_s: float = 10.0
    load_s: float = 60.0
    command_s: float = COMMAND_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class _Built:
    """What a command line says that must be known of its process later."""

    memory_bytes: int
    accelerator: str


class QemuVm(LiveCapture, Restored, Ballooned):
    """One QEMU process and our session with its monitor."""

    def __init__(
        self, process: HeldProcess, board: Board, folder: Path, built: "_Built", timeouts: Timeouts
    ) -> None:
        self.runtime = Runtime(process.pid, process.start_ticks, read_boot_id(), asdict(built))
        self.agent_socket = folder / "agent.sock"
        self._process, self._board, self._folder, self._built = process, board, folder, built
        self._timeouts = timeouts
        self._monitor = Monitor(timeouts.command_s)
        self._balloon = Balloon(self._monitor, built.memory_bytes)
        self._copier: Copier | None = None
        self._top_node: str | None = None
        self._pausing = anyio.Lock()
        self._killed = False
        self._stays_paused = False

    async def connect(self, timeout_s: float) -> None:
        """Open the monitor.

        Raises:
            VmmSilent: the process did not answer in time.
            VmmFailed: it ended, or has no monitor.
        """
        try:
            await self._monitor.connect(self._folder / "monitor.sock", timeout_s)
        except VmmFailed as error:
            # One that ends hangs up, and is seen to have ended a moment later.
            with anyio.move_on_after(EXIT_SEEN_TIMEOUT_S):
                await self._process.wait_exited()
            if self._process.is_exited:
                raise VmmFailed(f"QEMU ended: {self.last_words()}") from error
            raise

    async def wait_exited(self) -> ExitReason:
        await self._process.wait_exited()
        await self._monitor.wait_ended()
        if self._killed:
            return ExitReason.KILLED
        reasons = {
            "guest-shutdown": ExitReason.GUEST_SHUTDOWN,
            "guest-reset": ExitReason.GUEST_RESET,
            "guest-panic": ExitReason.GUEST_RESET,
        }
        return reasons.get(self._monitor.shutdown_reason or "", ExitReason.UNKNOWN)

    async def kill(self) -> None:
        self._killed = self._killed or not self._process.is_exited
        self._process.send_signal(signal.SIGKILL)
        with anyio.CancelScope(shield=True):
            await self._process.wait_exited()
            await self._monitor.disconnect()

    async def is_paused(self) -> bool:
        status = await self._monitor.execute("query-status")
        assert isinstance(status, dict)
        return not status["running"]

    async def resume(self) -> None:
        async with self._pausing:
            await self._monitor.execute("cont")

    @property
    def is_starved(self) -> bool:
        return self._monitor.is_starved

    def when_starved(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        # A full disk stops QEMU (werror=enospc, its default for disks), and "cont" tries the write again.
        return self._monitor.when_starved(call)

    async def detach(self) -> None:
        self._process.close()
        await self._monitor.disconnect()

    # Its size

    async def balloon_bytes(self) -> int:
        return await self._balloon.asked_bytes()

    async def demand_inflatable(self) -> None:
        await self._balloon.demand_inflatable()

    async def set_balloon(self, balloon_bytes: int) -> None:
        await self._balloon.ask(balloon_bytes)

    # Capture and disks

    async def limit_disks(self, rate_bytes_per_s: int) -> None:
        """Hold its disks together to so much; raises VmmFailed."""
        await limit_disks(self._monitor, rate_bytes_per_s)

    async def prepare_disk(self, new_top: Path) -> None:
        self._top_node = node_name(await self.top_layer())  # Asked here: the pause is no time for questions.
        node = {
            "driver": "qcow2",
            "node-name": node_name(new_top),
            "discard": "unmap",
            "file": file_node(new_top, writable=True),
            "backing": None,
        }
        await self._monitor.execute_with("blockdev-add", node)

    async def forget_disk(self, new_top: Path) -> None:
        await self._monitor.execute("blockdev-del", node_name=node_name(new_top))

    async def copy_ahead(self, target: Capture) -> int:
        guest = await to_thread.run_sync(find_guest_memory, self._process.pid, self._built.memory_bytes)
        self._copier = copier = Copier(guest, target.memory, target.base)
        copied = await self._copy(copier, copier.copy_ahead)
        if not copier.is_watched:
            log.info("writes_not_watched", pid=self._process.pid)  # `ramet doctor` tells why.
        for _ in range(WRITE_OUT_COUNT):
            await self._write_out_disks()
            copied += await self._copy(copier, copier.catch_up)
        return copied

    async def _copy(self, copier: Copier, work: Callable[[], int]) -> int:
        """Copy in a thread, which a cancellation has give up before it is waited for."""
        copied, failure, is_over = 0, None, False

        async def give_up_on_cancel() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                if not is_over:
                    copier.give_up()

        async with anyio.create_task_group() as group:
            group.start_soon(give_up_on_cancel)
            try:
                copied = await self._in_thread(work)
            except (OSError, VmmFailed) as error:
                failure = error
            is_over = True
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return copied

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        async with self._pausing:
            try:
                await self._monitor.execute("stop")
                yield
            finally:
                if not self._stays_paused:
                    with anyio.CancelScope(shield=True):
                        await self._monitor.execute("cont")

    def stay_paused(self) -> None:
        self._stays_paused = True

    async def switch_disk(self, new_top: Path) -> None:
        assert self._top_node is not None, "prepare_disk comes first"
        await self._monitor.execute("blockdev-snapshot", node=self._top_node, overlay=node_name(new_top))

    async def save_devices(self, target: Capture) -> None:
        # live=false: otherwise QEMU, paused, gives its disks away to whoever loads the state.
        await self._monitor.execute("xen-save-devices-state", filename=target.devices.path, live=False)
        target.format = self._format()

    async def copy_rest(self, target: Capture) -> int:
        assert self._copier is not None, "copy_ahead comes first"
        copier, self._copier = self._copier, None
        copied = await self._copy(copier, copier.copy_rest)
        target.changes = copier.changes
        return copied

    async def top_layer(self) -> Path:
        for block in await self._blocks():
            if f"disk-{OVERLAY_DEVICE}" in block.get("qdev", "").split("/"):
                return Path(block["inserted"]["file"])
        raise VmmFailed("QEMU shows no overlay disk")

    async def _blocks(self) -> list[dict[str, Any]]:
        blocks = await self._monitor.execute("query-block")
        assert isinstance(blocks, list)
        return blocks

    async def _write_out_disks(self) -> None:
        """Have what the guest has written be on the disks; `stop` would do it, inside the pause."""
        files = [block["inserted"]["file"] for block in await self._blocks() if not block["inserted"]["ro"]]
        try:
            await to_thread.run_sync(_write_out, files)
        except OSError as error:
            raise VmmFailed(f"the guest's disk cannot be written out: {error}") from error

    async def collapse_disk(self, base: Path) -> None:
        top = node_name(await self.top_layer())
        dropped = await self._nodes_below(top, until=node_name(base))
        await self._monitor.run_block_job("collapse", "block-stream", device=top, base_node=node_name(base))
        # QEMU keeps a node that was given a name, and its file open, until it is told otherwise; those
        # that were nested in such a node go with it.
        for node in dropped:
            if node in await self._backings():
                await self._monitor.execute("blockdev-del", node_name=node)

    async def forget_prepared_disks(self) -> None:
        """Close what an earlier daemon prepared and did not live to switch to.

        If QEMU refuses, a file too many stays open; the guest must not be given up for that.

        Raises:
            VmmSilent: it did not answer.
        """
        try:
            await self._drop_unused_nodes()
        except VmmSilent:
            raise
        except VmmFailed:
            return

    async def _drop_unused_nodes(self) -> None:
        top = node_name(await self.top_layer())
        used = {top, *await self._nodes_below(top, until=None)}
        for node in await self._backings():
            # A layer's name tells it from the disks that are not ours to drop, and from nameless nodes.
            if node.startswith(LAYER_NODE_PREFIX) and node not in used and node in await self._backings():
                await self._monitor.execute("blockdev-del", node_name=node)

    async def _nodes_below(self, top: str, until: str | None) -> list[str]:
        """Return the names of the overlay's nodes below `top` (and above `until`), topmost first."""
        backings = await self._backings()
        found: list[str] = []
        node = backings[top]
        while node is not None and node != until:
            found.append(node)
            node = backings[node]
        return found

    async def _backings(self) -> dict[str, str | None]:
        """Return the name of each block node, with that of the node below it."""
        nodes = await self._monitor.execute("query-named-block-nodes", flat=True)
        assert isinstance(nodes, list)
        return {
            node["node-name"]: node_name(Path(node["backing_file"])) if "backing_file" in node else None
            for node in nodes
        }

    # Restore

    async def lay_over(self, changes: FilledOnce, runs: PageRuns) -> None:
        """Have changes be in the memory of a VMM that waits.

        Raises:
            VmmFailed: it is gone.
        """

        def write() -> int:
            return lay_over(find_guest_memory(self._process.pid, self._built.memory_bytes), changes, runs)

        await self._in_thread(write)

    async def load(self, capture: Capture) -> None:
        try:
            capture.demand_format(self._format())
        except SnapshotIncompatible:
            await self.kill()
            raise
        try:
            async with asyncio.timeout(self._timeouts.load_s):
                await self._monitor.execute("migrate-incoming", uri=f"exec:cat {capture.devices.path}")
                await self._wait_running()
        except (VmmFailed, TimeoutError) as error:
            await self.kill()
            raise VmmFailed(f"QEMU did not load the capture: {self.last_words() or error}") from error

    def _format(self) -> CaptureFormat:
        board = self._board
        accelerator = self._built.accelerator
        processor = "" if accelerator == "tcg" else read_processor()
        return CaptureFormat(board.name, self._monitor.version(), board.device_model, accelerator, processor)

    async def _wait_running(self) -> None:
        with self._process.when_exited(self._monitor.give_up):
            await self._monitor.wait_resumed()
        if self._process.is_exited:
            raise VmmFailed("it ended while loading")

    async def _in_thread(self, work: Callable[[], int]) -> int:
        try:
            return await to_thread.run_sync(work)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise  # It is the capture's memory that cannot be had.
            raise VmmFailed(f"the guest's memory cannot be read: {error}") from error

    def last_words(self) -> str:
        log = self._folder / "vmm.log"
        try:
            with open(open_plain(log, os.O_RDONLY), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""


class QemuDriver(LiveFork):
    """Starts QEMU, by KVM where it truly works, otherwise emulated.

    Args:
        board: what QEMU builds; the driver has its name and finds only processes of it.
        instances_folder: the folder under which every VM of this daemon has its own; VMMs are found by it.
        watch_library: has what guests write be noted while they are captured, see `ramet.linux.writewatch`;
            without, their pause is longer.
    """

    limits_disks = True
    has_balloon = True

    def __init__(
        self,
        program: Path,
        version: str,
        accelerator: str,
        board: Board,
        instances_folder: Path,
        timeouts: Timeouts,
        watch_library: Path | None = None,
    ) -> None:
        self.name, self._board = board.name, board
        self.version, self.accelerator, self._timeouts = version, accelerator, timeouts
        self._program, self._instances_folder = program, instances_folder
        self._environment = None if watch_library is None else prepared(os.environ, watch_library)

    @classmethod
    def open(
        cls,
        instances_folder: Path,
        timeouts: Timeouts | None = None,
        board: Board = Q35,
        watch_library: Path | None = None,
    ) -> "QemuDriver":
        """Find QEMU on this host.

        Raises:
            Broken: there is none, or it cannot build this board.
        """
        program = shutil.which(PROGRAM)
        if program is None:
            raise Broken(f"{PROGRAM} is not installed", remedy="apt-get install qemu-system-x86")
        version = re.search(r"version (\S+)", _ask(program, "--version"))
        if not re.search(rf"^{re.escape(board.machine_type)}\s", _ask(program, "-M", "help"), re.MULTILINE):
            raise Broken(
                f"{PROGRAM} has no machine type {board.machine_type}",
                remedy="see `ramet doctor`, or use another hypervisor",
            )
        return cls(
            Path(program),
            version[1] if version else "",
            find_accelerator(),
            board,
            instances_folder,
            timeouts or Timeouts(),
            watch_library,
        )

    async def boot(self, machine: Machine) -> QemuVm:
        return await self._start(machine, None)

    async def start_waiting(self, machine: Machine, capture: Capture) -> QemuVm:
        return await self._start(machine, capture)

    async def find(self) -> dict[InstanceId, Runtime]:
        found: dict[InstanceId, Runtime] = {}
        boot_id = read_boot_id()
        for pid, arguments in list_command_lines():
            options = dict(pairwise(arguments))
            if not arguments[0].endswith(PROGRAM) or not options.keys() >= _OPTIONS:
                continue
            if options["-M"].partition(",")[0] != self._board.machine_type:
                continue
            name = options["-name"].removeprefix("guest=")
            instance = InstanceId(name.removeprefix(NAME_PREFIX))
            folder = self._instances_folder / instance
            if name.startswith(NAME_PREFIX) and any(f"path={folder}/" in argument for argument in arguments):
                memory_mib, accelerator = options["-m"].removesuffix("M"), options["-accel"].partition(",")[0]
                built = _Built(int(memory_mib) << 20, accelerator)
                try:
                    ticks = read_start_ticks(pid)
                except ProcessLookupError:
                    continue
                found[instance] = Runtime(pid, ticks, boot_id, asdict(built))
        return found

    async def adopt(self, instance: InstanceId, folder: Path, runtime: Runtime) -> QemuVm:
        try:
            process = HeldProcess(runtime.pid, start_ticks=runtime.start_ticks)
        except ProcessLookupError as error:
            raise VmmFailed("the VMM is gone", instance=instance) from error
        memory_bytes, accelerator = runtime.driver["memory_bytes"], runtime.driver["accelerator"]
        assert isinstance(memory_bytes, int)
        assert isinstance(accelerator, str)
        vm = QemuVm(process, self._board, folder, _Built(memory_bytes, accelerator), self._timeouts)
        try:
            await vm.connect(self._timeouts.adopt_s)
            await vm.forget_prepared_disks()
        except BaseException as error:
            is_gone = process.is_exited
            with anyio.CancelScope(shield=True):
                await vm.detach()
            if isinstance(error, VmmFailed) and not is_gone:
                raise VmmSilent(f"the VMM cannot be taken hold of: {error}", instance=instance) from error
            raise
        return vm

    async def end(self, runtime: Runtime) -> None:
        try:
            process = HeldProcess(runtime.pid, start_ticks=runtime.start_ticks)
        except ProcessLookupError:
            return
        process.send_signal(signal.SIGKILL)
        await process.wait_exited()

    async def _start(self, machine: Machine, capture: Capture | None) -> QemuVm:
        folder, most = machine.folder, self._board.volume_count_max
        machine.demand_fixed_size(self.name)
        if len(machine.volumes) > most:
            raise VmmUnsupported(
                f"an instance on {self.name} has {most} volumes at most, not {len(machine.volumes)}",
                remedy="use fewer volumes, or another hypervisor",
            )
        passed = [] if machine.nic is None else [machine.nic.tap_fd]
        listeners = [_listen(folder / "monitor.sock"), _listen(folder / "agent.sock")]
        try:
            sockets = Sockets(listeners[0].fileno(), listeners[1].fileno())
            argv = command_line(
                self._program,
                self._board,
                machine,
                sockets,
                accelerator=self.accelerator,
                memory_path=None if capture is None else f"/proc/self/fd/{capture.mapped.fd}",
            )
            passed += [sockets.monitor_fd, sockets.agent_fd]
            if capture is not None:
                passed.append(capture.mapped.fd)
            process = HeldProcess.start(
                argv,
                output=folder / "vmm.log",
                cwd=folder,
                pass_fds=passed,
                environment=self._environment,
            )
        except OSError as error:
            raise VmmFailed(f"QEMU cannot be started: {error}") from error
        finally:
            for listener in listeners:
                listener.close()
        built = _Built(machine.memory_bytes, self.accelerator)
        vm = QemuVm(process, self._board, folder, built, self._timeouts)
        try:
            await vm.connect(self._timeouts.start_s)
            if machine.disk_io_bytes_per_s is not None:
                await vm.limit_disks(machine.disk_io_bytes_per_s)
            if capture is not None and capture.changes:
                # At once: who loads later may have the same memory in another form, without changes.
                await vm.lay_over(capture.memory, capture.changes)
        except BaseException as error:
            await vm.kill()
            if isinstance(error, VmmFailed):
                raise VmmFailed(f"QEMU did not start: {vm.last_words() or error}") from error
            raise
        return vm


def _write_out(files: Iterable[str]) -> None:
    for path in files:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _ask(*argv: str) -> str:
    try:
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Broken(f"{PROGRAM} does not run: {error}", remedy="see `ramet doctor`") from error


def find_accelerator() -> str:
    """Return "kvm" where it can run a stock kernel, otherwise "tcg"."""
    return "kvm" if kvm.runs_stock_kernels() else "tcg"


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise VmmFailed(
            f"{path} is too long for a unix socket", remedy="choose a data folder with a shorter path"
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
