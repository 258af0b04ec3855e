"""How long a source stands still for its capture, against a memcpy of as much: ./run bench pause [OPTIONS]

One guest of each size is captured again and again as the daemon does it, without a network; before each
capture as many bytes as the guest has resident are copied by memmove, on one thread, from anonymous memory to
a memfd whose pages are there. Ways alternate; medians are compared. The last line is JSON.

Scenarios:
  idle       the guest does nothing
  burst      8 children of an earlier capture are being started by the same process
  writing    it writes some 100 MB/s to its memory all the time
  unflushed  100 MB were just written to its disk, and not synced
  dirtying   it rewrites a file of 64 MB on its disk all the time, as fast as it can
Ways:
  watched    only what was written since it was copied ahead is copied in the pause
  twice      everything is copied again, as where the kernel cannot note writes
"""

import argparse
import asyncio
import ctypes
import json
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))  # For `tests`: its bench is what is measured on.

import anyio

from ramet.boot.kit import prepare_kit
from ramet.boot.locate import GUEST_PROGRAM, native_program
from ramet.core.ids import LayerId, mint_id
from ramet.guest.channel import Channel
from ramet.guest.exec import run
from ramet.linux.memfd import SealableFile
from ramet.snapshots.capture import Source, Taken, open_memory_capture, take_capture
from ramet.telemetry.timings import operation
from ramet.vmm.qemu.board import Q35
from ramet.vmm.qemu.memory import GuestMemory, find_guest_memory
from tests.vmm.bench import LiveVm
from tests.vmm.test_qemu import QemuBench, find_kernel_package, make_root

MIB = 1 << 20
SIZES_MIB = (85,)
ROUND_COUNT = 5
SCENARIOS = ("idle", "burst", "writing", "unflushed", "dirtying")
WAYS = ("watched", "twice")
UNFLUSHED_MIB = 100
BURST_COUNT = 8
BLOCK_MIB = 16
SPARE_MIB = 384  # What a guest may have resident beyond its size: the system, and its page cache.

_UNFLUSHED = f"dd if=/dev/zero of=/big bs=1M count={UNFLUSHED_MIB} conv=notrunc 2>/dev/null"
_ONGOING = {
    "dirtying": "while :; do dd if=/dev/zero of=/dirty bs=1M count=64 conv=notrunc 2>/dev/null; done",
    "writing": "while :; do dd if=/dev/shm/block of=/dev/shm/written bs=1M count=10 conv=notrunc 2>/dev/null;"
    " echo >>/dev/shm/count; sleep 0.08; done",
}


class PauseBench(QemuBench):
    overlay_bytes = 1 << 30


@dataclass
class Figures:
    """What was measured of one size, scenario and way. Times in seconds."""

    pause_s: list[float] = field(default_factory=list)
    memcpy_s: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    paused_bytes: list[int] = field(default_factory=list)
    phases_ms: list[dict[str, float]] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        phases = {
            name: round(statistics.median(phases.get(name, 0.0) for phases in self.phases_ms), 2)
            for name in self.phases_ms[0]
        }
        return {
            "resident_mib": round(statistics.median(self.resident_bytes) / MIB),
            "memcpy_s": round(statistics.median(self.memcpy_s), 5),
            "pause_s": {
                "p50": round(statistics.median(self.pause_s), 5),
                "max": round(max(self.pause_s), 5),
            },
            "pause_over_memcpy": round(statistics.median(self.pause_s) / statistics.median(self.memcpy_s), 2),
            "copied_in_pause_kib": round(statistics.median(self.paused_bytes) / 1024),
            "phases_ms": phases,
        }


Found = defaultdict[tuple[int, str, str], Figures]
"""By size in MiB, scenario and way."""


class Memcpy:
    """memmove of any count of bytes up to `most`, between areas whose pages are all there."""

    def __init__(self, most: int) -> None:
        self._source = mmap.mmap(-1, most, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._file = SealableFile("ramet-bench", most)
        _, self._to = self._file.map_for_fill()
        self._from = ctypes.addressof(ctypes.c_char.from_buffer(self._source))
        ctypes.memset(self._from, 1, most)
        ctypes.memmove(self._to, self._from, most)

    def time(self, byte_count: int) -> float:
        began = time.perf_counter()
        ctypes.memmove(self._to, self._from, byte_count)
        return time.perf_counter() - began

    def close(self) -> None:
        self._file.close()
        self._source.close()


@dataclass
class Guest:
    """One source with its channel, which serves the bench and the capture alike."""

    bench: PauseBench
    vm: LiveVm
    channel: Channel
    memcpy: Memcpy

    async def sh(self, script: str, timeout_s: float = 600) -> str:
        done = await run(self.channel, ("sh", "-c", script), timeout_s=timeout_s)
        assert done.exit.code == 0, done
        return done.stdout.decode()

    def resident_bytes(self) -> int:
        memory = find_guest_memory(self.vm.runtime.pid, self.bench.memory_bytes)
        return sum(length for _, length in memory.find_own_pages())

    async def capture(self) -> tuple[Taken, dict[str, float]]:
        """Capture it; returns that and how long each phase took, in ms."""
        pid = self.vm.runtime.pid

        async def record(new_top: LayerId) -> None:
            self.bench.tops[pid] = new_top

        layers, top = self.bench.layers, self.bench.tops[pid]
        memory_bytes, overlay_bytes = self.bench.memory_bytes, self.bench.overlay_bytes
        source = Source("bench", self.vm, self.channel, top, memory_bytes, overlay_bytes)
        with operation("capture") as timings:
            taken = await take_capture(
                source,
                layers,
                LayerId(mint_id()),
                open_capture=open_memory_capture,
                before_pause=lambda: None,
                record_switch=record,
            )
        return taken, timings.phases_ms


async def measure_size(
    folder: Path,
    size_mib: int,
    options: argparse.Namespace,
    found: defaultdict[tuple[int, str, str], Figures],
) -> None:
    place = folder / f"{size_mib}"
    place.mkdir()
    PauseBench.memory_bytes = (2 * size_mib + SPARE_MIB) * MIB
    bench = PauseBench(place, Q35)
    kit = prepare_kit(
        folder / "kits", guest_program=native_program(GUEST_PROGRAM), kernel_package=find_kernel_package()
    )
    bench.kernel, bench.initramfs, bench.root = kit.kernel, kit.initramfs, make_root(place)
    try:
        vm = await bench.boot()
        async with bench.channel(vm) as channel:
            guest = Guest(bench, vm, channel, Memcpy((size_mib + SPARE_MIB) * MIB))
            await _fill(guest, size_mib * MIB)
            # One scenario after the other: what a guest has written to its disk stays in its page cache.
            for scenario in options.scenarios:
                for number in range(options.rounds + 1):  # The first is not counted: it is all cold.
                    for way in options.ways if number % 2 else reversed(options.ways):
                        figures = found[size_mib, scenario, way] if number else Figures()
                        await _measure(guest, scenario, way, figures)
                if not options.json:
                    for way in options.ways:
                        show(size_mib, scenario, way, found[size_mib, scenario, way])
            guest.memcpy.close()
    finally:
        await bench.aclose()
        shutil.rmtree(place)


async def _fill(guest: Guest, wanted_bytes: int) -> None:
    """Make so much of the guest's memory resident, with what does not compress."""
    await guest.sh(
        f"dd if=/dev/urandom of=/dev/shm/block bs=1M count={BLOCK_MIB} 2>/dev/null; rm -f /dev/shm/f*"
    )
    await guest.sh("mount -o remount,size=95% /dev/shm")
    missing, index = wanted_bytes - guest.resident_bytes(), 0
    while missing > 0:
        part_mib = min(BLOCK_MIB, -(-missing // MIB))
        await guest.sh(f"dd if=/dev/shm/block of=/dev/shm/f{index} bs=1M count={part_mib} 2>/dev/null")
        missing, index = missing - part_mib * MIB, index + 1


async def _measure(guest: Guest, scenario: str, way: str, figures: Figures) -> None:
    async with _going_on(guest, scenario):
        if scenario == "unflushed":
            await guest.sh(_UNFLUSHED)
        resident = guest.resident_bytes()
        memcpy_s = guest.memcpy.time(resident)
        with nullcontext() if way == "watched" else _no_watch():
            taken, phases_ms = await guest.capture()
    taken.close()
    figures.pause_s.append(taken.pause_s)
    figures.memcpy_s.append(memcpy_s)
    figures.resident_bytes.append(resident)
    figures.paused_bytes.append(taken.paused_bytes)
    figures.phases_ms.append(phases_ms)


def _no_watch() -> AbstractContextManager[object]:
    return mock.patch.object(GuestMemory, "watch_writes", return_value=False)


@asynccontextmanager
async def _going_on(guest: Guest, scenario: str) -> AsyncIterator[None]:
    """Have happen inside what the scenario is about."""
    if scenario == "burst":
        taken, _ = await guest.capture()
        children: list[LiveVm] = []

        async def start() -> None:
            children.append(await guest.bench.child(taken.capture, taken.frozen))

        async with anyio.create_task_group() as group:
            for _ in range(BURST_COUNT):
                group.start_soon(start)
            await anyio.wait_all_tasks_blocked()
            yield
        for child in children:
            await guest.bench.end(child)
        taken.close()
    elif scenario in _ONGOING:
        async with anyio.create_task_group() as group:
            group.start_soon(guest.sh, _ONGOING[scenario])
            await anyio.sleep(1)  # So that it is well under way; nothing tells.
            yield
            group.cancel_scope.cancel()
    else:
        yield


HEAD = "  size   scenario      way  resident  memcpy   pause     max ratio   (medians, ms)"


def show(size_mib: int, scenario: str, way: str, figures: Figures) -> None:
    pause_ms, memcpy_ms = (statistics.median(x) * 1000 for x in (figures.pause_s, figures.memcpy_s))
    resident = f"{statistics.median(figures.resident_bytes) / MIB:.0f} MiB"
    print(
        f"{size_mib:>6} {scenario:>10} {way:>8} {resident:>9} {memcpy_ms:>7.1f} {pause_ms:>7.1f}"
        f" {max(figures.pause_s) * 1000:>7.1f} {pause_ms / memcpy_ms:>5.2f}",
        flush=True,
    )


async def main(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ramet-bench-"))
    found: Found = defaultdict(Figures)
    load1 = os.getloadavg()[0]
    if not options.json:
        print(HEAD)
    try:
        for size_mib in options.sizes:
            await measure_size(folder, size_mib, options, found)
    finally:
        shutil.rmtree(folder)
    summaries = [
        {"size_mib": size_mib, "scenario": scenario, "way": way, **figures.summary()}
        for (size_mib, scenario, way), figures in found.items()
    ]
    first = summaries[0]
    print(
        json.dumps(
            {
                "pause_over_memcpy": first["pause_over_memcpy"],
                "source_pause_s": first["pause_s"],
                "rounds": options.rounds,
                "cores": os.cpu_count(),
                "load1": {"before": load1, "after": os.getloadavg()[0]},
                "measured": summaries,
            }
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench pause", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES_MIB, metavar="MIB")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--rounds", type=int, default=ROUND_COUNT)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
