"""A real guest grows and shrinks on Cloud Hypervisor, and so do its children: run in the host within."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import anyio

from ramet.boot.kit import prepare_kit
from ramet.boot.locate import GUEST_PROGRAM, native_program
from ramet.core.ids import LayerId
from ramet.linux.memfd import SealableFile
from ramet.vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from ramet.vmm.port import MEMORY_FILE_NAME, Ballooned, BalloonUnsupported, Capture, Machine, Resizable
from ramet.vmm.qemu.board import Q35
from tests.vmm.bench import LiveVm
from tests.vmm.raw_layers import RawLayerStore
from tests.vmm.test_qemu import QemuBench, find_kernel_package, make_root

MIB: Final = 1 << 20
ROOM_BYTES: Final = 256 * MIB
PLUGGED_BYTES: Final = 128 * MIB
TAKEN_BYTES: Final = 48 * MIB
SLACK_BYTES: Final = 16 * MIB
"""What the guest's kernel needs to keep books of memory, or does not give back at once."""
BLOCK: Final = "/dev/shm/block"
FILL: Final = (
    f"head -c 1048576 /dev/urandom >/tmp/piece; for i in $(busybox seq 130); do cat /tmp/piece; done >{BLOCK}"
)
TIMEOUT_S: Final = 240.0


class SizeBench(QemuBench):
    """Guests of ours on a real Cloud Hypervisor, with room for more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Q35)
        self.layers = RawLayerStore(folder / "layers")

    def open_driver(self, timeout_s: float | None = None) -> Any:
        return CloudHypervisorDriver.open(self.instances)

    def machine(self, layer: LayerId, argv: tuple[str, ...] | None = None) -> Machine:
        return replace(super().machine(layer, argv), plug_bytes=ROOM_BYTES, vcpu_count_max=2)

    def new_capture(self, base: Any = None) -> Capture:
        memory = SealableFile(MEMORY_FILE_NAME, self.memory_bytes + ROOM_BYTES)
        return Capture(memory, SealableFile("ramet-devices"), base=base)

    async def sh(self, vm: LiveVm, command: str) -> str:
        return await self.run(vm, ("sh", "-c", command))

    async def memory_of(self, vm: LiveVm, what: str = "MemTotal") -> int:
        lines = (await self.sh(vm, "cat /proc/meminfo")).splitlines()
        (words,) = (line.split() for line in lines if line.startswith(f"{what}:"))
        return int(words[1]) << 10


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while not await condition():
            pass  # To ask takes a while.


async def grow(bench: SizeBench, source: LiveVm) -> None:
    assert isinstance(source, Resizable)
    had_bytes = await bench.memory_of(source)
    await source.resize(2, bench.memory_bytes + PLUGGED_BYTES)

    async def has_more() -> bool:
        return await bench.memory_of(source) >= had_bytes + PLUGGED_BYTES - SLACK_BYTES

    await until(has_more)

    async def has_both() -> bool:
        return await bench.sh(source, "cat /sys/devices/system/cpu/present") == "0-1"

    await until(has_both)
    await bench.sh(source, "echo 1 >/sys/devices/system/cpu/cpu1/online")
    await bench.sh(source, f"busybox mount -o remount,size=90% /dev/shm; {FILL}")
    print("it has grown", flush=True)


async def shrink(bench: SizeBench, vm: LiveVm) -> None:
    assert isinstance(vm, Resizable)
    await bench.sh(vm, f"rm {BLOCK}")
    had_bytes = await bench.memory_of(vm)
    await vm.resize(1, bench.memory_bytes)

    async def has_less() -> bool:
        return await bench.memory_of(vm) <= had_bytes - PLUGGED_BYTES + SLACK_BYTES

    await until(has_less)

    async def has_one() -> bool:
        return await bench.sh(vm, "cat /sys/devices/system/cpu/online") == "0"

    await until(has_one)
    print("it has shrunk", flush=True)


async def give_back(bench: SizeBench, source: LiveVm) -> None:
    assert isinstance(source, Ballooned)
    had_bytes = await bench.memory_of(source, "MemFree")

    async def has_given(vm: LiveVm) -> bool:
        return await bench.memory_of(vm, "MemFree") <= had_bytes - TAKEN_BYTES + SLACK_BYTES

    await source.set_balloon(TAKEN_BYTES)
    await until(lambda: has_given(source))
    child = await bench.fork(source)
    assert isinstance(child, Ballooned)
    assert await has_given(child)
    try:
        await child.set_balloon(TAKEN_BYTES)
    except BalloonUnsupported:
        print("a child gives nothing back", flush=True)
    else:
        raise AssertionError("a child was asked to give memory back")
    for vm in (source, child):

        async def has_all(vm: LiveVm = vm) -> bool:
            return await bench.memory_of(vm, "MemFree") >= had_bytes - SLACK_BYTES

        assert isinstance(vm, Ballooned)
        await vm.set_balloon(0)
        await until(has_all)
    await bench.end(child)
    print("and has it again", flush=True)


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ramet-size-"))
    bench = SizeBench(folder)
    guest = native_program(GUEST_PROGRAM)
    kit = prepare_kit(folder / "kits", guest_program=guest, kernel_package=find_kernel_package())
    bench.kernel, bench.initramfs, bench.root = kit.kernel, kit.initramfs, make_root(folder)
    try:
        source = await bench.boot()
        await grow(bench, source)
        was = await bench.sh(source, f"busybox md5sum {BLOCK}")
        child = await bench.fork(source)
        await shrink(bench, source)
        assert await bench.sh(child, f"busybox md5sum {BLOCK}") == was
        assert await bench.sh(child, "cat /sys/devices/system/cpu/online") == "0-1"
        grandchild = await bench.fork(child)
        await bench.end(child)
        assert await bench.sh(grandchild, f"busybox md5sum {BLOCK}") == was
        print("children have it all", flush=True)
        await shrink(bench, grandchild)
        await bench.end(grandchild)
        await give_back(bench, source)
    except BaseException:
        for log in bench.folder.glob("instances/*/*.log"):
            print(log, log.read_text(errors="replace")[-2000:], sep="\n", flush=True)
        raise
    finally:
        await bench.aclose()
    shutil.rmtree(folder)
    print("whole", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
