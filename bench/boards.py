"""Boot and fork on each of QEMU's boards, in alternating rounds: ./run bench boards [ROUNDS]

Driver alone, without a network: what is compared is the boards. Medians are printed with the host's load.
"""

import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # For `tests`: its bench is what is measured on.

from ramet.boot.kit import prepare_kit
from ramet.boot.locate import GUEST_PROGRAM, native_program
from ramet.vmm.qemu.board import BOARDS
from tests.vmm.test_qemu import QemuBench, find_kernel_package, make_root

ROUND_COUNT = 7
FORK_COUNT = 3  # In each round; the first, into a cold cache, is not counted.


async def main(round_count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ramet-bench-"))
    kit = prepare_kit(
        folder / "kits", guest_program=native_program(GUEST_PROGRAM), kernel_package=find_kernel_package()
    )
    root = make_root(folder)
    took_ms: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    try:
        for number in range(round_count):
            for board in BOARDS if number % 2 else reversed(BOARDS):
                place = folder / f"{number}{board.name}"
                place.mkdir()
                bench = QemuBench(place, board)
                bench.kernel, bench.initramfs, bench.root = kit.kernel, kit.initramfs, root

                def note(phase: str, ms: float, name: str = board.name) -> None:
                    took_ms[name, phase].append(ms)

                try:
                    await _round(bench, note)
                finally:
                    await bench.aclose()
    finally:
        shutil.rmtree(folder)
    print(f"{round_count} rounds, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")
    for phase in dict.fromkeys(phase for _, phase in took_ms):
        shown = [f"{board.name} {_show(took_ms[board.name, phase])}" for board in BOARDS]
        print(f"{phase:>14} ms  " + "   ".join(shown))


async def _round(bench: QemuBench, note: Callable[[str, float], None]) -> None:
    began = time.perf_counter()
    vm = await bench.boot()
    async with bench.channel(vm) as channel:
        await channel.health()
    note("boot", (time.perf_counter() - began) * 1000)
    for index in range(FORK_COUNT + 1):
        frozen = bench.tops[vm.runtime.pid]
        began = time.perf_counter()
        capture = await bench.capture(vm)
        captured = time.perf_counter()
        child = await bench.start_waiting(capture, frozen)
        started = time.perf_counter()
        await bench.wake(child, capture, "child")
        done = time.perf_counter()
        capture.close()
        if index:
            note("capture", (captured - began) * 1000)
            note("child start", (started - captured) * 1000)
            note("load, identify", (done - started) * 1000)
            note("fork", (done - began) * 1000)
        await bench.end(child)


def _show(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUND_COUNT))
