"""What a second sleep writes, and what the wake from it takes: ./run bench standby [OPTIONS]

A guest of each size sleeps, wakes, and sleeps again as the daemon does it, without a network, and again; in
between it is left alone for a while, or works. Ways alternate; medians are compared. The last line is JSON.

Scenarios:
  idle       it does nothing for the time between
  working    it writes 16 MiB to its memory, too
Ways:
  whole       all of the memory is stored each time
  difference  what has changed since the memory that it woke from
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # For `tests`: its bench is what is measured on.

import anyio

from ramet.boot.kit import prepare_kit
from ramet.boot.locate import GUEST_PROGRAM, native_program
from ramet.core.ids import CaptureId, mint_id
from ramet.snapshots.store import CaptureStore
from ramet.snapshots.suspend import suspend
from ramet.vmm.qemu.board import Q35
from tests.vmm.bench import LiveVm
from tests.vmm.test_qemu import QemuBench, find_kernel_package, make_root

MIB = 1 << 20
SIZES_MIB = (96, 512)
ROUND_COUNT = 5
IDLE_S = 3.0
SCENARIOS = ("idle", "working")
WAYS = ("whole", "difference")
BLOCK_MIB = 16
SPARE_MIB = 128  # What a guest may have resident beyond its size.

_WORK = f"dd if=/dev/urandom of=/dev/shm/work bs=1M count={BLOCK_MIB} conv=notrunc 2>/dev/null"


@dataclass
class Figures:
    """What was measured of one size, scenario and way. Times in seconds."""

    written_bytes: list[int] = field(default_factory=list)
    whole_bytes: list[int] = field(default_factory=list)
    sleep_s: list[float] = field(default_factory=list)
    wake_s: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        written, whole = statistics.median(self.written_bytes), statistics.median(self.whole_bytes)
        return {
            "written_mib": round(written / MIB, 1),
            "whole_mib": round(whole / MIB, 1),
            "written_over_whole": round(written / whole, 3),
            "sleep_s": {"p50": round(statistics.median(self.sleep_s), 3), "max": round(max(self.sleep_s), 3)},
            "wake_s": {"p50": round(statistics.median(self.wake_s), 3), "max": round(max(self.wake_s), 3)},
        }


Found = defaultdict[tuple[int, str, str], Figures]
"""By size in MiB, scenario and way."""


class Sleeper:
    """One guest that sleeps and wakes in turns, in captures below `folder`."""

    def __init__(self, bench: QemuBench, vm: LiveVm, folder: Path) -> None:
        self.bench, self.vm = bench, vm
        self.captures = CaptureStore(folder / "captures")
        self.base = folder / "base-memory"
        self.stored: CaptureId | None = None

    async def sh(self, script: str) -> None:
        await self.bench.run(self.vm, ("sh", "-c", script))

    async def sleep(self, *, base: Path | None) -> tuple[int, int, float]:
        """Have it sleep; returns the bytes written, those of its whole memory, and how long it took, in s."""
        capture = CaptureId(mint_id())
        began = time.perf_counter()
        async with self.bench.channel(self.vm) as channel:
            with self.captures.draft(capture, self.bench.memory_bytes, "bench", base) as draft:

                async def end() -> None:
                    self.captures.hold(capture, "bench")
                    await self.vm.kill()

                await suspend(self.vm, channel, draft, end)
                took_s = time.perf_counter() - began
        self.stored = capture
        assert draft.manifest is not None
        files = [path.stat() for path in draft.folder.iterdir()]
        written = sum(file.st_blocks * 512 for file in files if file.st_nlink == 1)
        return written, draft.manifest.resident_bytes, took_s

    async def wake(self) -> float:
        """Have it wake; returns how long it took until it had said who it is, in s."""
        assert self.stored is not None
        frozen = self.bench.tops[self.vm.runtime.pid]
        self.bench.vms.remove(self.vm)
        async with self.captures.opened(self.stored) as capture:
            began = time.perf_counter()
            self.vm = await self.bench.child(capture, frozen)
            took_s = time.perf_counter() - began
            assert self.captures.link_memory(self.stored, self.base)
        self.captures.release(self.stored, "bench")
        return took_s


async def measure_size(folder: Path, size_mib: int, options: argparse.Namespace, found: Found) -> None:
    place = folder / f"{size_mib}"
    (place / "captures").mkdir(parents=True)
    QemuBench.memory_bytes = (size_mib + SPARE_MIB) * MIB
    bench = QemuBench(place, Q35)
    kit = prepare_kit(
        folder / "kits", guest_program=native_program(GUEST_PROGRAM), kernel_package=find_kernel_package()
    )
    bench.kernel, bench.initramfs, bench.root = kit.kernel, kit.initramfs, make_root(place)
    try:
        async with anyio.create_task_group() as group:
            sleeper = Sleeper(bench, await bench.boot(), place)
            group.start_soon(sleeper.captures.run)
            await sleeper.sh("mount -o remount,size=95% /dev/shm")
            await _fill(sleeper, size_mib * MIB)
            for scenario in options.scenarios:
                for number in range(options.rounds + 1):  # The first is not counted: it is all cold.
                    for way in options.ways if number % 2 else reversed(options.ways):
                        figures = found[size_mib, scenario, way] if number else Figures()
                        await _measure(sleeper, scenario, way, figures)
                for way in options.ways:
                    if not options.json:
                        print(size_mib, scenario, way, found[size_mib, scenario, way].summary(), flush=True)
            group.cancel_scope.cancel()
    finally:
        await bench.aclose()
        shutil.rmtree(place)


async def _fill(sleeper: Sleeper, wanted_bytes: int) -> None:
    """Make so much of the guest's memory resident, with what does not compress; it has slept once then."""
    await sleeper.sh(f"dd if=/dev/urandom of=/dev/shm/block bs=1M count={BLOCK_MIB} 2>/dev/null")
    _, whole_bytes, _ = await sleeper.sleep(base=None)
    await sleeper.wake()
    for index in range(max(0, (wanted_bytes - whole_bytes) // (BLOCK_MIB * MIB))):
        await sleeper.sh(f"cat /dev/shm/block >/dev/shm/f{index}")


async def _measure(sleeper: Sleeper, scenario: str, way: str, figures: Figures) -> None:
    # It begins with a wake from a whole, so that a round does not depend on the one before it.
    _, whole_bytes, _ = await sleeper.sleep(base=None)
    await sleeper.wake()
    if scenario == "working":
        await sleeper.sh(_WORK)
    await anyio.sleep(IDLE_S)
    written, _, sleep_s = await sleeper.sleep(base=sleeper.base if way == "difference" else None)
    figures.written_bytes.append(written)
    figures.whole_bytes.append(whole_bytes)
    figures.sleep_s.append(sleep_s)
    figures.wake_s.append(await sleeper.wake())


async def main(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ramet-bench-", dir=options.folder))
    found: Found = defaultdict(Figures)
    load1 = os.getloadavg()[0]
    try:
        for size_mib in options.sizes:
            await measure_size(folder, size_mib, options, found)
    finally:
        shutil.rmtree(folder)
    measured = [
        {"size_mib": size_mib, "scenario": scenario, "way": way, **figures.summary()}
        for (size_mib, scenario, way), figures in found.items()
    ]
    load = {"before": load1, "after": os.getloadavg()[0]}
    print(
        json.dumps({"rounds": options.rounds, "cores": os.cpu_count(), "load1": load, "measured": measured})
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench standby", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES_MIB, metavar="MIB")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--rounds", type=int, default=ROUND_COUNT)
    parser.add_argument("--folder", type=Path, help="where to store; by default below /tmp")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
