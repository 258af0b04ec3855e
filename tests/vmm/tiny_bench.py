"""A real VMM as a bench: a driver, and guests of a hundred bytes that count."""

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import anyio
import pytest

from ramet.core.ids import InstanceId, LayerId, mint_id
from ramet.linux.memfd import SealableFile
from ramet.linux.process import list_command_lines
from ramet.vmm.jail import JailConfig, JailMode
from ramet.vmm.port import MEMORY_FILE_NAME, Capture, DiskImage, LiveFork, Machine
from ramet.vmm.rest import Api
from ramet.vmm.rest_vm import RestVm
from tests.vmm import tiny_guest
from tests.vmm.raw_layers import RawLayerStore

DISK_BYTES = 1 << 20
POLL_S = 0.01
TIMEOUT_S = 60.0


V_co = TypeVar("V_co", bound=RestVm, covariant=True)


class TinyBench(ABC, Generic[V_co]):
    """A driver of REST-speaking VMMs, which are of that `kind`, with everything it needs, in `folder`."""

    kind: type[V_co]
    memory_bytes = 16 << 20

    def __init__(self, folder: Path, jail: JailMode) -> None:
        self.folder, self.jail = folder, JailConfig(jail)
        for name in ("instances", "layers"):
            (folder / name).mkdir()
        self.layers = RawLayerStore(folder / "layers")
        self.driver = self.open_driver()
        self.vms: list[RestVm] = []
        self.tops: dict[int, LayerId] = {}  # By pid.

    @abstractmethod
    def open_driver(self) -> LiveFork:
        """Return another driver of the same folder."""

    def machine(self, layer: LayerId, kernel: bytes | None = None) -> Machine:
        instance = InstanceId(mint_id())
        folder = self.folder / "instances" / instance
        folder.mkdir()
        files = {
            "kernel": kernel or tiny_guest.build(),
            "initramfs": bytes(4096),
            "config.img": bytes(65_536),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        root = self.folder / "root.img"
        if not root.exists():
            root.write_bytes(bytes(DISK_BYTES))
        return Machine(
            instance=instance,
            folder=folder,
            vcpu_count=1,
            memory_bytes=self.memory_bytes,
            kernel=folder / "kernel",
            initramfs=folder / "initramfs",
            root=root,
            overlay=DiskImage(self.layers.chain(layer)),
            config=folder / "config.img",
            nic=None,
        )

    async def boot(self, kernel: bytes | None = None) -> V_co:
        layer = self.layers.create(DISK_BYTES)
        return self.keep(await self.driver.boot(self.machine(layer, kernel)), layer)

    async def capture(
        self, vm: RestVm, base: SealableFile | None = None, target: Capture | None = None
    ) -> Capture:
        if target is None:
            memory = SealableFile(MEMORY_FILE_NAME, self.memory_bytes)
            target = Capture(memory, SealableFile("ramet-devices"), base=base)
        new_top = self.layers.create_on(self.tops[vm.runtime.pid], DISK_BYTES)
        await vm.prepare_disk(self.layers.path(new_top))
        await vm.copy_ahead(target)
        async with vm.paused():
            await vm.switch_disk(self.layers.path(new_top))
            await vm.save_devices(target)
            await vm.copy_rest(target)
        self.tops[vm.runtime.pid] = new_top
        target.seal()
        return target

    async def child(self, capture: Capture, frozen: LayerId, driver: LiveFork | None = None) -> V_co:
        """Start a VMM that waits for `capture`; `driver`: instead of the bench's own."""
        layer = self.layers.create_on(frozen, DISK_BYTES)
        return self.keep(await (driver or self.driver).start_waiting(self.machine(layer), capture), layer)

    def keep(self, vm: object, layer: LayerId) -> V_co:
        """End a VMM with the bench."""
        assert isinstance(vm, self.kind)
        self.vms.append(vm)
        self.tops[vm.runtime.pid] = layer
        return vm

    async def aclose(self) -> None:
        for vm in self.vms:
            await vm.kill()


def make_volumes(folder: Path, count: int) -> tuple[DiskImage, ...]:
    """Make volumes in `folder`, every other one of them read-only."""
    paths = [folder / f"volume{index}" for index in range(count)]
    for path in paths:
        path.write_bytes(bytes(DISK_BYTES))
    return tuple(DiskImage(((path, "raw"),), bool(index % 2)) for index, path in enumerate(paths))


def counted(vm: RestVm) -> list[int]:
    """Return the numbers that a guest has printed; all of its memory was right."""
    return tiny_guest.rounds((vm.agent_socket.parent / "console.log").read_text())


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - a console tells nobody
            await anyio.sleep(POLL_S)


async def goes_on(vm: RestVm) -> None:
    """Return when a guest has counted further than it had."""
    before = len(counted(vm))
    await until(lambda: len(counted(vm)) > before + 1)


def kill_at(monkeypatch: pytest.MonkeyPatch, wanted: str) -> Callable[[], bool]:
    """Have the VMM that is asked `wanted` next be killed when it has the request, and before it answers.

    Returns what tells whether one was.
    """
    exchange = Api._exchange
    is_armed = True

    async def killing(
        api: Api, method: str, path: str, body: Mapping[str, object] | None, passed: Sequence[int]
    ) -> tuple[int, bytes]:
        nonlocal is_armed
        if not is_armed or f"{method} {path}" != wanted:
            return await exchange(api, method, path, body, passed)
        is_armed = False
        pid = next(pid for pid, _ in list_command_lines() if _is_in(pid, api._folder))
        os.kill(pid, signal.SIGSTOP)
        asked = asyncio.ensure_future(exchange(api, method, path, body, passed))
        await anyio.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)
        return await asked

    monkeypatch.setattr(Api, "_exchange", killing)
    return lambda: not is_armed


def _is_in(pid: int, folder: Path) -> bool:
    """Tell whether a process has `folder` as its working directory."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(folder)
    except OSError:
        return False
