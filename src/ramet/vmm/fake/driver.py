"""A VMM that is none: real processes, sockets, captures and disk layers, and no guest's processor.

It ships with the product so that everything above the port can be tried without virtualization, and be made
to fail at any call (`Faults`). It keeps the contract of the port, by the same suite as the real drivers.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import anyio

from ramet.core.ids import InstanceId
from ramet.core.spec import Runtime
from ramet.linux.filled_once import FilledOnce
from ramet.linux.pagemap import PAGE_BYTES, PageRuns
from ramet.linux.process import HeldProcess, list_command_lines, read_boot_id, read_start_ticks
from ramet.vmm.fake.faults import Faults
from ramet.vmm.fake.nursery import Nursery
from ramet.vmm.fake.process import DEVICES_FORMAT, pack_memory
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
)

COMMAND_TIMEOUT_S: Final = 20.0
MARK: Final = "ramet-fake-vmm"
_FORMAT: Final = CaptureFormat("fake", "1", 1, "kvm")
_SOURCE: Final = Path(__file__).parents[3]
_START: Final = (
    f"import sys; sys.path.insert(0, {str(_SOURCE)!r}); from ramet.vmm.fake.process import main; main()"
)


class _Monitor(asyncio.Protocol):
    """One connection to a process: answers come in the order of the commands."""

    def __init__(self) -> None:
        self.shutdown_reason = ""
        self.lost = asyncio.Event()
        self._waiting: list[asyncio.Future[dict[str, Any]]] = []
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "event" in message:
                self.shutdown_reason = message["reason"]
            else:
                answer = self._waiting.pop(0)
                if not answer.done():
                    answer.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        for answer in self._waiting:
            if not answer.done():
                answer.set_result({"error": "it ended"})

    async def execute(self, command: str, timeout_s: float, **arguments: object) -> Any:
        """Run a command and return its answer.

        Raises:
            VmmSilent: the process did not answer in time.
            VmmFailed: it was refused, or the process ended.
        """
        if self._transport is None or self.lost.is_set():
            raise VmmFailed(f"the VMM is gone: {command} cannot be done")
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._transport.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
        try:
            async with asyncio.timeout(timeout_s):
                message = await answer
        except TimeoutError as late:
            raise VmmSilent(f"the VMM did not answer {command} within {timeout_s:g} s") from late
        if "error" in message:
            raise VmmFailed(f"the VMM refused {command}: {message['error']}")
        return message["return"]

    async def close(self) -> None:
        """End the connection. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
            await self.lost.wait()


class FakeVm(LiveCapture, Restored, Ballooned):
    """One process and our connection to its monitor."""

    def __init__(self, process: HeldProcess, folder: Path, faults: Faults, timeout_s: float) -> None:
        self.runtime = Runtime(process.pid, process.start_ticks, read_boot_id(), {})
        self.agent_socket = folder / "agent.sock"
        self._process, self._folder, self._faults, self._timeout_s = process, folder, faults, timeout_s
        self._monitor = _Monitor()
        self._pausing = anyio.Lock()
        self._killed = False
        self._stays_paused = False

    async def connect(self) -> None:
        """Open the monitor; return when the process has answered.

        Raises:
            VmmSilent: it did not in time.
            VmmFailed: it ended, or nobody listens.
        """
        loop = asyncio.get_running_loop()
        try:
            path = str(self._folder / "monitor.sock")
            await loop.create_unix_connection(lambda: self._monitor, path)
        except OSError as error:
            raise VmmFailed(f"the VMM's monitor cannot be reached: {error.strerror}") from error
        await self._do("query")

    async def forget_strays(self) -> None:
        """Close what was prepared by a daemon that did not live to use it."""
        for layer in (await self._do("query"))["prepared"]:
            await self._do("forget_disk", layer=layer)

    async def wait_exited(self) -> ExitReason:
        await self._process.wait_exited()
        await self._monitor.lost.wait()  # Its last words are read by then.
        if self._killed:
            return ExitReason.KILLED
        reasons = {"guest-shutdown": ExitReason.GUEST_SHUTDOWN, "guest-reset": ExitReason.GUEST_RESET}
        return reasons.get(self._monitor.shutdown_reason, ExitReason.UNKNOWN)

    async def kill(self) -> None:
        async with self._faults.around("kill"):
            self._killed = self._killed or not self._process.is_exited
            self._process.send_signal(signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await self._process.wait_exited()
                await self._monitor.close()

    async def is_paused(self) -> bool:
        async with self._faults.around("is_paused"):
            return bool((await self._do("query"))["paused"])

    async def resume(self) -> None:
        async with self._pausing, self._faults.around("resume"):
            await self._do("resume")

    async def detach(self) -> None:
        self._process.close()
        await self._monitor.close()

    async def prepare_disk(self, new_top: Path) -> None:
        async with self._faults.around("prepare_disk"):
            await self._do("prepare_disk", layer=str(new_top))

    async def forget_disk(self, new_top: Path) -> None:
        async with self._faults.around("forget_disk"):
            await self._do("forget_disk", layer=str(new_top))

    async def copy_ahead(self, target: Capture) -> int:
        async with self._faults.around("copy_ahead"):
            return await self._copy(target)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        async with self._pausing:
            try:
                async with self._faults.around("stop"):
                    await self._do("pause")
                yield
            finally:
                if not self._stays_paused:
                    with anyio.CancelScope(shield=True):
                        await self._go_on()

    def stay_paused(self) -> None:
        self._stays_paused = True

    async def _go_on(self) -> None:
        try:
            async with self._faults.around("cont"):
                await self._do("resume")
        except VmmFailed:
            await self._do("resume")
            raise

    async def switch_disk(self, new_top: Path) -> None:
        async with self._faults.around("switch_disk"):
            await self._do("switch_disk", layer=str(new_top))

    async def save_devices(self, target: Capture) -> None:
        async with self._faults.around("save_devices"):
            Path(target.devices.path).write_bytes(json.dumps({"format": DEVICES_FORMAT}).encode())
            target.format = _FORMAT

    async def copy_rest(self, target: Capture) -> int:
        async with self._faults.around("copy_rest"):
            assert await self.is_paused(), "only while paused"
            return await self._copy(target)

    async def top_layer(self) -> Path:
        async with self._faults.around("top_layer"):
            return Path((await self._do("query"))["top"])

    async def collapse_disk(self, base: Path) -> None:
        async with self._faults.around("collapse_disk"):
            await self._do("collapse_disk", base=str(base))

    async def balloon_bytes(self) -> int:
        async with self._faults.around("balloon_bytes"):
            return int((await self._do("query"))["balloon_bytes"])

    async def demand_inflatable(self) -> None:
        return

    async def set_balloon(self, balloon_bytes: int) -> None:
        async with self._faults.around("set_balloon"):
            await self._do("set_balloon", balloon_bytes=balloon_bytes)

    async def load(self, capture: Capture) -> None:
        try:
            capture.demand_format(_FORMAT)
        except SnapshotIncompatible:
            await self.kill()
            raise
        try:
            async with self._faults.around("load"):
                await self._do("load", devices=capture.devices.path)
        except VmmFailed as error:
            await self.kill()
            raise VmmFailed(f"the capture was not loaded: {self.last_words() or error}") from error

    async def _copy(self, target: Capture) -> int:
        content = pack_memory((await self._do("query"))["memory"])
        mapped, _ = target.memory.map_for_fill()
        if target.base is None:
            mapped[: len(content)] = content
            return len(content)
        target.changes = _difference(content, target.base)
        for offset, length in target.changes:
            mapped[offset : offset + length] = content[offset : offset + length].ljust(length, b"\0")
        return sum(length for _, length in target.changes)

    async def _do(self, command: str, **arguments: object) -> Any:
        return await self._monitor.execute(command, self._timeout_s, **arguments)

    def last_words(self) -> str:
        return (self._folder / "vmm.log").read_text().strip()


def _difference(content: bytes, base: FilledOnce) -> PageRuns:
    """Return which pages of `content` are not those of `base`."""
    before = os.pread(base.fd, base.size_bytes, 0)
    pages = range(0, len(content), PAGE_BYTES)
    return tuple(
        (at, PAGE_BYTES)
        for at in pages
        if not before[at : at + PAGE_BYTES].startswith(content[at : at + PAGE_BYTES])
    )


class FakeDriver(LiveFork):
    """Starts fake VMMs.

    Args:
        instances_folder: the folder under which every VM has its own; VMMs are found by it.
        faults: what is to go wrong, in any call, whenever it is armed.
        timeout_s: how long a VMM may take to answer.
        nursery: forks the VMMs, where many are started; without, each is a Python of its own.
    """

    name = _FORMAT.hypervisor
    version = _FORMAT.version
    accelerator = _FORMAT.accelerator
    limits_disks = True
    has_balloon = True

    def __init__(
        self,
        instances_folder: Path,
        faults: Faults | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        nursery: Nursery | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self._instances_folder, self._timeout_s, self._nursery = instances_folder, timeout_s, nursery

    async def boot(self, machine: Machine) -> FakeVm:
        return await self._start(machine, None)

    async def start_waiting(self, machine: Machine, capture: Capture) -> FakeVm:
        return await self._start(machine, capture)

    async def find(self) -> dict[InstanceId, Runtime]:
        async with self.faults.around("find"):
            found: dict[InstanceId, Runtime] = {}
            for pid, arguments in list_command_lines():
                if len(arguments) < 3 or arguments[-2] != MARK:
                    continue
                folder = Path(json.loads(arguments[-1])["folder"])
                if folder.parent == self._instances_folder:
                    try:
                        ticks = read_start_ticks(pid)
                    except ProcessLookupError:
                        continue
                    found[InstanceId(folder.name)] = Runtime(pid, ticks, read_boot_id(), {})
            return found

    async def adopt(self, instance: InstanceId, folder: Path, runtime: Runtime) -> FakeVm:
        async with self.faults.around("adopt"):
            try:
                process = HeldProcess(runtime.pid, start_ticks=runtime.start_ticks)
            except ProcessLookupError as error:
                raise VmmFailed("the VMM is gone", instance=instance) from error
            vm = FakeVm(process, folder, self.faults, self._timeout_s)
            try:
                await vm.connect()
                await vm.forget_strays()
            except BaseException as error:
                is_gone = process.is_exited
                with anyio.CancelScope(shield=True):
                    await vm.detach()
                if isinstance(error, VmmFailed) and not is_gone:
                    raise VmmSilent(f"the VMM cannot be taken hold of: {error}", instance=instance) from error
                raise
            return vm

    async def end(self, runtime: Runtime) -> None:
        async with self.faults.around("end"):
            try:
                process = HeldProcess(runtime.pid, start_ticks=runtime.start_ticks)
            except ProcessLookupError:
                return
            process.send_signal(signal.SIGKILL)
            await process.wait_exited()

    async def _start(self, machine: Machine, capture: Capture | None) -> FakeVm:
        call: Final = "boot" if capture is None else "start_waiting"
        vm: FakeVm | None = None
        machine.demand_fixed_size(self.name)
        try:
            async with self.faults.around(call):
                vm = self._spawn(machine, capture)
                try:
                    await vm.connect()
                except VmmFailed as error:
                    raise VmmFailed(f"the VMM did not start: {vm.last_words() or error}") from error
                return vm
        except BaseException:
            if vm is not None:
                with anyio.CancelScope(shield=True):
                    await vm.kill()
            raise

    def _spawn(self, machine: Machine, capture: Capture | None) -> FakeVm:
        listeners = [_listen(machine.folder / f"{name}.sock") for name in ("monitor", "agent")]
        memory_fd = None if capture is None else capture.mapped.fd
        options = {
            "folder": str(machine.folder),
            "layers": [str(path) for path, _ in machine.overlay.layers],
            "volumes": [(str(disk.layers[0][0]), disk.is_read_only) for disk in machine.volumes],
            "monitor_fd": listeners[0].fileno(),
            "agent_fd": listeners[1].fileno(),
            "memory_fd": memory_fd,
            "changes": capture.memory.path if capture is not None and capture.changes else None,
            "disk_io_bytes_per_s": machine.disk_io_bytes_per_s,
            "runs": () if capture is None else capture.changes or (),
        }
        argv = [sys.executable, "-I", "-S", "-c", _START, MARK, json.dumps(options)]
        passed = [listener.fileno() for listener in listeners]
        passed += [] if memory_fd is None else [memory_fd]
        passed += [] if machine.nic is None else [machine.nic.tap_fd]
        output = machine.folder / "vmm.log"
        try:
            if self._nursery is not None:
                process = HeldProcess(self._nursery.start(options, output=output, fds=passed))
            else:
                process = HeldProcess.start(argv, output=output, cwd=machine.folder, pass_fds=passed)
        except OSError as error:
            raise VmmFailed(f"the VMM cannot be started: {error}") from error
        finally:
            for listener in listeners:
                listener.close()
        return FakeVm(process, machine.folder, self.faults, self._timeout_s)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener
