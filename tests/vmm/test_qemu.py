"""QEMU keeps the contract of the port, on each of its boards."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from examples.make_image import APPLETS
from ramet.boot.kit import prepare_kit
from ramet.boot.locate import (
    GUEST_PROGRAM,
    WRITEWATCH_LIBRARY,
    KernelNotFound,
    ProgramNotBuilt,
    native_program,
)
from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.linux import writewatch
from ramet.linux.pagemap import PAGE_BYTES
from ramet.vmm.port import DiskImage, Machine, SnapshotIncompatible, Vm, VmmFailed, VmmUnsupported
from ramet.vmm.qemu.board import BOARDS, Board
from ramet.vmm.qemu.command import node_name
from ramet.vmm.qemu.driver import QemuDriver, QemuVm, Timeouts
from ramet.vmm.qemu.memory import find_guest_memory
from tests.vmm.bench import OVERLAY_BYTES, Bench, LiveVm, digest
from tests.vmm.contract import ForkContract

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="reading a guest's memory is for root"),
]

ROOT = Path(__file__).parent.parent.parent
SYS_cachestat = 451
FILL_AND_FREE = "dd if=/dev/urandom of=/dev/shm/block bs=1M count=8; rm /dev/shm/block"
BUSYBOX = Path("/bin/busybox")


class QemuBench(Bench):
    memory_bytes = 160 << 20

    def __init__(self, folder: Path, board: Board) -> None:
        self.board = board
        super().__init__(folder)

    def open_driver(self, timeout_s: float | None = None) -> QemuDriver:
        timeouts = Timeouts() if timeout_s is None else Timeouts(*([timeout_s] * 4))
        return QemuDriver.open(self.instances, timeouts, self.board, native_program(WRITEWATCH_LIBRARY))

    def remember(self, name: str, value: str) -> tuple[str, ...]:
        return ("sh", "-c", f"echo {value} > /dev/shm/{name}")

    def recall(self, name: str) -> tuple[str, ...]:
        return ("cat", f"/dev/shm/{name}")

    def store(self, name: str, value: str) -> tuple[str, ...]:
        return ("sh", "-c", f"echo {value} > /{name}")

    def fetch(self, name: str) -> tuple[str, ...]:
        return ("cat", f"/{name}")

    def reset(self) -> tuple[str, ...]:
        return ("sh", "-c", "echo b > /proc/sysrq-trigger")

    async def disk_rates(self, vm: Vm) -> set[int | None]:
        assert isinstance(vm, QemuVm)
        blocks = await vm._blocks()
        assert len({block["inserted"].get("group") for block in blocks}) == 1  # They share it.
        return {block["inserted"]["bps"] or None for block in blocks}

    def workload(self) -> tuple[str, ...]:
        return ("/bin/sleep", "1000000")


def find_kernel_package() -> Path | None:
    named = os.environ.get("RAMET_KERNEL_PACKAGE")
    found = [Path(named)] if named else sorted((ROOT / ".cache" / "kernel").glob("*.deb"))
    return found[-1] if found else None


def make_root(folder: Path) -> Path:
    """Return an EROFS image of a static busybox."""
    tree = folder / "tree"
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin" / "busybox")
    for applet in (*APPLETS, "dd", "rm", "free", "head"):
        (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    image = folder / "root.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", image, tree], check=True, stdout=subprocess.DEVNULL)
    return image


@pytest.fixture(scope="module", params=BOARDS, ids=lambda board: board.name)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[QemuBench]:
    if shutil.which("mkfs.erofs") is None or not BUSYBOX.exists():
        pytest.skip("needs erofs-utils and a static busybox")
    folder = Path(tempfile.mkdtemp(prefix="ramet-qemu-"))  # Short: sockets lie in it.
    try:
        bench = QemuBench(folder, request.param)
        package, guest = find_kernel_package(), native_program(GUEST_PROGRAM)
        kit = prepare_kit(folder / "kits", guest_program=guest, kernel_package=package)
    except (Broken, KernelNotFound, ProgramNotBuilt) as missing:
        shutil.rmtree(folder)
        pytest.skip(str(missing))
    bench.kernel, bench.initramfs, bench.root = kit.kernel, kit.initramfs, make_root(folder)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def source(bench: QemuBench) -> LiveVm:
    vm = await bench.boot()
    await bench.run(vm, ("echo", "awake"))
    return vm


class TestQemu(ForkContract):
    """The contract."""


async def test_a_capture_of_one_board_is_refused_by_another_and_neither_driver_finds_the_others_vms(
    bench: QemuBench, source: LiveVm
) -> None:
    (other,) = (board for board in BOARDS if board != bench.board)
    driver = QemuDriver.open(bench.instances, board=other)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    machine = bench.machine(bench.layers.create_on(frozen, OVERLAY_BYTES))
    stranger = await driver.start_waiting(machine, capture)
    assert machine.instance in await driver.find()
    assert machine.instance not in await bench.driver.find()
    with pytest.raises(SnapshotIncompatible, match=other.name):
        await stranger.load(capture)
    capture.close()
    assert await driver.find() == {}


async def test_a_guest_has_as_many_volumes_as_its_board_has_places_and_no_more(bench: QemuBench) -> None:
    def machine(count: int) -> Machine:
        made = bench.machine(bench.layers.create(OVERLAY_BYTES))
        paths = [made.folder / f"disk{index}.raw" for index in range(count)]
        for path in paths:
            path.write_bytes(bytes(1 << 20))
        return replace(made, volumes=tuple(DiskImage(((path, "raw"),)) for path in paths))

    most = bench.board.volume_count_max
    with pytest.raises(VmmUnsupported, match=str(most + 1)):
        await bench.driver.boot(machine(most + 1))
    vm = await bench.driver.boot(machine(most))
    bench.vms.append(vm)
    found = await bench.run(vm, ("sh", "-c", "for disk in /sys/block/vd*; do cat $disk/serial; echo; done"))
    disks = ["root", "overlay", "config", *(f"volume{index}" for index in range(most))]
    assert sorted(found.split()) == sorted(disks)
    await bench.end(vm)


async def test_a_board_that_this_qemu_does_not_have_is_an_error_when_it_is_opened(bench: QemuBench) -> None:
    with pytest.raises(Broken, match="pdp-11"):
        QemuDriver.open(bench.instances, board=replace(bench.board, machine_type="pdp-11"))


async def test_a_child_that_gives_back_all_its_memory_harms_neither_capture_nor_sibling(
    bench: QemuBench, source: LiveVm
) -> None:
    await bench.run(source, ("sh", "-c", "dd if=/dev/urandom of=/dev/shm/block bs=1M count=16"))
    content = await bench.run(source, ("sh", "-c", "cksum /dev/shm/block || cat /dev/shm/block | wc -c"))
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    before = digest(capture.memory)
    wild = await bench.child(capture, frozen, "wild")
    await bench.run(
        wild,
        ("sh", "-c", "rm /dev/shm/block; dd if=/dev/zero of=/dev/shm/fill bs=1M count=32; rm /dev/shm/fill"),
    )
    assert isinstance(wild, QemuVm)
    # What it has written and freed, and more; with much less than this a guest is busy with nothing else.
    await wild._monitor.execute("balloon", value=bench.memory_bytes * 5 // 8)
    await bench.run(wild, ("sh", "-c", "i=0; while [ $i -lt 50 ]; do i=$((i+1)); free > /dev/null; done"))
    assert digest(capture.memory) == before
    sibling = await bench.child(capture, frozen, "sibling")
    found = await bench.run(sibling, ("sh", "-c", "cksum /dev/shm/block || cat /dev/shm/block | wc -c"))
    assert found == content
    capture.close()
    await bench.end(wild)
    await bench.end(sibling)


@pytest.mark.skipif(not writewatch.is_supported(), reason="needs Linux 6.7")
async def test_only_what_is_written_after_it_was_copied_ahead_is_copied_in_the_pause(
    bench: QemuBench, source: LiveVm
) -> None:
    child = await bench.fork(source)
    await child.detach()
    bench.vms.remove(child)
    folder = child.agent_socket.parent
    adopted = await bench.open_driver().adopt(InstanceId(folder.name), folder, child.runtime)
    for vm in (source, adopted):
        capture = bench.new_capture()
        ahead_bytes = await vm.copy_ahead(capture)
        async with vm.paused():
            paused_bytes = await vm.copy_rest(capture)
        assert paused_bytes < ahead_bytes // 4
        capture.close()
    await adopted.kill()


async def test_a_capture_is_the_memory_of_the_paused_guest_page_for_page(
    bench: QemuBench, source: LiveVm
) -> None:
    child = await bench.fork(source)
    for vm in (source, child):
        await bench.run(vm, ("sh", "-c", FILL_AND_FREE))
        capture = bench.new_capture()
        await vm.copy_ahead(capture)
        await bench.run(vm, ("sh", "-c", FILL_AND_FREE))
        async with vm.paused():
            await vm.copy_rest(capture)
            guest = find_guest_memory(vm.runtime.pid, bench.memory_bytes)
            memory = os.open(f"/proc/{guest.pid}/mem", os.O_RDONLY)
            try:
                for offset in range(0, guest.size_bytes, 1 << 20):
                    real = os.pread(memory, 1 << 20, guest.start + offset)
                    assert real == os.pread(capture.memory.fd, 1 << 20, offset), f"MiB {offset >> 20}"
            finally:
                os.close(memory)
        capture.close()
    await bench.end(child)


async def test_what_a_guest_has_written_is_on_the_disk_before_it_is_paused(
    bench: QemuBench, source: LiveVm
) -> None:
    fd = os.open(bench.layers.path(bench.tops[source.runtime.pid]), os.O_RDWR)
    try:
        os.pwrite(fd, os.pread(fd, PAGE_BYTES, 0), 0)  # The same again: dirty, and otherwise unchanged.
        assert count_dirty_pages(fd) > 0
        capture = bench.new_capture()
        await source.copy_ahead(capture)
        assert count_dirty_pages(fd) == 0
        capture.close()
    finally:
        os.close(fd)


def count_dirty_pages(fd: int) -> int:
    """Return how many pages of a file are not yet on their disk (cachestat(2), Linux 6.5)."""
    everything, found = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)()
    if ctypes.CDLL(None, use_errno=True).syscall(SYS_cachestat, fd, everything, found, 0) < 0:
        pytest.skip("this kernel has no cachestat")
    _, dirty, writeback, *_ = found
    return dirty + writeback


async def test_a_vm_that_ends_in_the_middle_of_a_block_job_is_an_error(
    bench: QemuBench, source: LiveVm
) -> None:
    child = await bench.fork(source)
    await bench.run(child, ("dd", "if=/dev/urandom", "of=/block", "bs=1M", "count=4"))
    (await bench.capture(child)).close()
    assert isinstance(child, QemuVm)
    layers = [path for path, _ in bench.layers.chain(bench.tops[child.runtime.pid])]
    names = {"device": node_name(layers[0]), "base_node": node_name(layers[-1])}
    failures: list[VmmFailed] = []

    async def stream_slowly() -> None:
        try:
            await child._monitor.run_block_job("slow", "block-stream", **names, speed=1)
        except VmmFailed as failure:
            failures.append(failure)

    async with anyio.create_task_group() as group:
        group.start_soon(stream_slowly)
        while not await child._monitor.execute("query-block-jobs"):
            await anyio.lowlevel.checkpoint()
        await child.kill()
    assert "ended during" in str(failures[0])
