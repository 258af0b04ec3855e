"""What a driver is tried on: real layers, folders and captures; and a guest to talk to."""

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ramet.core.ids import InstanceId, LayerId, mint_id
from ramet.disks.layers import LayerStore
from ramet.guest.channel import Channel, open_channel
from ramet.guest.exec import run
from ramet.guest.identity import GuestIdentity, identify_child
from ramet.linux.filled_once import FilledOnce
from ramet.linux.memfd import SealableFile
from ramet.vmm.port import Capture, DiskImage, LiveCapture, LiveFork, Machine, Restored, Vm
from ramet.wire.boot_config import BootConfig

OVERLAY_BYTES = 64 << 20
CONFIG_DISK_BYTES = 64 << 10


class LiveVm(LiveCapture, Restored):
    """What the Vms of both drivers are."""


class Bench(ABC):
    """One driver with everything it needs, in `folder`."""

    memory_bytes: ClassVar[int]
    overlay_bytes: ClassVar[int] = OVERLAY_BYTES
    kernel: Path
    initramfs: Path
    root: Path

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instances = folder / "instances"
        self.instances.mkdir()
        (folder / "layers").mkdir()
        self.layers = LayerStore(folder / "layers")
        self.driver = self.open_driver()
        self.vms: list[Vm] = []
        self.tops: dict[int, LayerId] = {}  # By pid.

    @abstractmethod
    def open_driver(self, timeout_s: float | None = None) -> LiveFork:
        """Return another driver of the same folder; all its time limits are `timeout_s`."""

    @abstractmethod
    def remember(self, name: str, value: str) -> tuple[str, ...]:
        """Return the command that keeps `value` in the guest's memory."""

    @abstractmethod
    def recall(self, name: str) -> tuple[str, ...]: ...

    @abstractmethod
    def store(self, name: str, value: str) -> tuple[str, ...]:
        """Return the command that writes `value` to the guest's disk."""

    @abstractmethod
    def fetch(self, name: str) -> tuple[str, ...]: ...

    @abstractmethod
    def reset(self) -> tuple[str, ...]: ...

    @abstractmethod
    async def disk_rates(self, vm: Vm) -> set[int | None]:
        """Return what the VMM says its disks let through, in bytes per second, each value once."""

    @abstractmethod
    def workload(self) -> tuple[str, ...]:
        """Return a workload that goes on until it is told to stop."""

    def machine(self, layer: LayerId, argv: tuple[str, ...] | None = None) -> Machine:
        instance = InstanceId(mint_id())
        folder = self.instances / instance
        folder.mkdir()
        config = BootConfig(
            argv=argv or self.workload(),
            env={"PATH": "/bin"},
            cwd="/",
            user="",
            hostname="source",
            machine_id="0" * 32,
            clock_ns=time.time_ns(),
            entropy=os.urandom(64),
        )
        (folder / "config.img").write_bytes(config.to_disk().ljust(CONFIG_DISK_BYTES, b"\0"))
        return Machine(
            instance=instance,
            folder=folder,
            vcpu_count=1,
            memory_bytes=self.memory_bytes,
            kernel=self.kernel,
            initramfs=self.initramfs,
            root=self.root,
            overlay=DiskImage(self.layers.chain(layer)),
            config=folder / "config.img",
            nic=None,
        )

    async def boot(
        self, argv: tuple[str, ...] | None = None, disk_io_bytes_per_s: int | None = None
    ) -> LiveVm:
        layer = self.layers.create(self.overlay_bytes)
        machine = replace(self.machine(layer, argv), disk_io_bytes_per_s=disk_io_bytes_per_s)
        return self.keep(await self.driver.boot(machine), layer)

    async def capture(self, vm: LiveVm, target: Capture | None = None) -> Capture:
        """Capture `vm` as the port says it is to be done; its disk goes on in a new layer."""
        target = target or self.new_capture()
        new_top = self.layers.create_on(self.tops[vm.runtime.pid], self.overlay_bytes)
        async with AsyncExitStack() as guest:
            channel = await guest.enter_async_context(self.channel(vm))
            await vm.prepare_disk(self.layers.path(new_top))
            await channel.sync()
            await vm.copy_ahead(target)
            await channel.freeze()
            async with vm.paused():
                await vm.switch_disk(self.layers.path(new_top))
                await vm.save_devices(target)
                await vm.copy_rest(target)
            self.tops[vm.runtime.pid] = new_top
            await self.thaw(vm, channel)
        target.seal()
        return target

    async def thaw(self, vm: LiveVm, channel: Channel) -> None:
        """Have the workload go on after a capture; `channel` is from before."""
        await channel.thaw()

    def new_capture(self, base: FilledOnce | None = None) -> Capture:
        memory = SealableFile("ramet-memory", self.memory_bytes)
        return Capture(memory, SealableFile("ramet-devices"), base=base)

    async def start_waiting(
        self, capture: Capture, frozen: LayerId, disk_io_bytes_per_s: int | None = None
    ) -> LiveVm:
        layer = self.layers.create_on(frozen, self.overlay_bytes)
        machine = replace(self.machine(layer), disk_io_bytes_per_s=disk_io_bytes_per_s)
        return self.keep(await self.driver.start_waiting(machine, capture), layer)

    async def fork(self, vm: LiveVm, hostname: str = "child") -> LiveVm:
        """Make a child that is itself and runs."""
        frozen = self.tops[vm.runtime.pid]
        capture = await self.capture(vm)
        try:
            return await self.child(capture, frozen, hostname)
        finally:
            capture.close()

    async def child(self, capture: Capture, frozen: LayerId, hostname: str = "child") -> LiveVm:
        child = await self.start_waiting(capture, frozen)
        await self.wake(child, capture, hostname)
        return child

    async def wake(self, child: LiveVm, capture: Capture, hostname: str) -> None:
        """Load the capture into a waiting child, and make it itself."""
        await child.load(capture)
        identity = GuestIdentity(hostname, "1" * 32)
        channel, _ = await identify_child(child.agent_socket, identity, timeout_s=60)
        await channel.aclose()

    @asynccontextmanager
    async def channel(self, vm: Vm) -> AsyncIterator[Channel]:
        async with await open_channel(vm.agent_socket, timeout_s=60) as channel:
            yield channel

    async def run(self, vm: Vm, argv: tuple[str, ...]) -> str:
        """Run a command in a guest, which must succeed; returns what it wrote."""
        async with self.channel(vm) as channel:
            done = await run(channel, argv, timeout_s=60)
        assert done.exit.code == 0, done
        return done.stdout.decode().strip()

    async def end(self, vm: Vm) -> None:
        """End a VM that is needed no more."""
        await vm.kill()
        self.vms.remove(vm)

    async def aclose(self) -> None:
        for vm in self.vms:
            await vm.kill()

    def keep(self, vm: Vm, layer: LayerId) -> LiveVm:
        """Have `vm`, which writes to `layer`, be ended with the bench."""
        assert isinstance(vm, LiveCapture)
        assert isinstance(vm, Restored)
        self.vms.append(vm)
        self.tops[vm.runtime.pid] = layer
        return vm  # type: ignore[return-value]  # Both, as asserted.


def digest(file: FilledOnce) -> str:
    """Return a digest of the whole content. (Which zeros are holes may change: reading one fills it.)"""
    found = hashlib.blake2b()
    for position in range(0, file.size_bytes, 1 << 24):
        found.update(os.pread(file.fd, 1 << 24, position))
    return found.hexdigest()


def open_files(pid: int) -> set[str]:
    """Return the paths of the files that a process has open."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(fd.readlink()))
        except FileNotFoundError:
            continue
    return found
