"""What the pager's answers cost: ./run bench pager [--json]

Each ratio is of two things measured in turn, five rounds each, medians compared:

- `window_over_page`: pages per second answered in windows of 64 KiB, over those answered one by one;
- `replay_over_mapped_write`, `replay_over_mapped_read`: from before its memory is made until a VMM has
  touched its working set, with the pager replaying the set, over a private mapping of the same file, which is
  in the page cache;
- `two_cores_over_one`: pages per second of four VMMs and their pager on two cores, over one core;
- `idle_session_bytes`: what a session takes of the pager's memory while its VMM touches nothing.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from native.build import build_example
from ramet.boot.locate import PAGER_PROGRAM, native_program
from ramet.cli.output import print_table
from ramet.pager import PagerClient, PagerSupervisor, WorkingSetUse

PAGE_BYTES: Final = 4096
MIB: Final = 1 << 20
ROUND_COUNT: Final = 5
BASE_BYTES: Final = 256 * MIB
ANSWERED_BYTES: Final = 64 * MIB
"""Of memory that is touched to see how fast faults are answered."""
SET_BYTES: Final = 64 * MIB
RUN_PAGES_MAX: Final = 32
"""A working set is made of runs of 1 to so many pages."""
VMM_COUNT: Final = 4
IDLE_COUNT: Final = 40
"""Sessions more in each round."""


class Bench:
    """One pager, and a base in a tmpfs, so that it is in the page cache."""

    def __init__(self, folder: Path, vmm: Path, client: PagerClient, pid: int, rounds: int) -> None:
        self._folder, self._vmm, self._client, self._pid = folder, vmm, client, pid
        self._rounds = rounds
        self._base = folder / "base"
        self._number = 0
        rng = random.Random(1)
        with self._base.open("wb") as file:
            for _ in range(BASE_BYTES // MIB):
                file.write(rng.randbytes(MIB))
        self._random = rng

    async def window_over_page(self) -> dict[str, float]:
        count = ANSWERED_BYTES // PAGE_BYTES
        pages = self._random.sample(range(count), count)
        windows, single = [], []
        for _ in range(self._rounds):
            windows.append(count / await self._touch_served(pages, WorkingSetUse.OFF))
            single.append(count / await self._touch_served(pages, WorkingSetUse.RECORD))
        return _rates("window_over_page", ("window_pages_per_s", windows), ("page_pages_per_s", single))

    async def replay_over_mapped(self, kind: str) -> dict[str, float]:
        pages = self._working_set()
        first = await self._start("read", pages, WorkingSetUse.RECORD)
        await first.go()
        await self._client.ready_session(first.name)
        await first.stop()
        replayed, mapped = [], []
        for _ in range(self._rounds):
            replayed.append(await self._touch_served(pages, WorkingSetUse.AUTO, kind))
            vmm = await self._spawn(
                "touch", kind, str(BASE_BYTES), self._list(pages), "file", str(self._base)
            )
            mapped.append(await vmm.go())
            await vmm.stop()
        ratio = statistics.median(replayed) / statistics.median(mapped)
        return {
            f"replay_over_mapped_{kind}": round(ratio, 3),
            f"replay_{kind}_ms": round(statistics.median(replayed) * 1000, 2),
            f"mapped_{kind}_ms": round(statistics.median(mapped) * 1000, 2),
        }

    async def two_cores_over_one(self) -> dict[str, float]:
        count = ANSWERED_BYTES // PAGE_BYTES
        pages = self._random.sample(range(count), count)
        cores = sorted(os.sched_getaffinity(0))[:2]
        if len(cores) < 2:
            raise SystemExit("two cores are needed")
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(self._rounds):
            for core_count, taken in rates.items():
                vmms = [await self._start("read", pages, WorkingSetUse.OFF) for _ in range(VMM_COUNT)]
                for pid in (self._pid, *(vmm.pid for vmm in vmms)):
                    _confine(pid, cores[:core_count])
                took_s = await asyncio.gather(*(vmm.go() for vmm in vmms))
                taken.append(VMM_COUNT * count / max(took_s))
                for vmm in vmms:
                    await vmm.stop()
        _confine(self._pid, cores)
        return _rates(
            "two_cores_over_one", ("two_cores_pages_per_s", rates[2]), ("one_core_pages_per_s", rates[1])
        )

    async def idle_session_bytes(self) -> dict[str, float]:
        taken, vmms = [], []
        for _ in range(self._rounds):
            before = self._private_bytes()
            fresh = [await self._start("read", [0], WorkingSetUse.OFF) for _ in range(IDLE_COUNT)]
            for vmm in fresh:
                await vmm.go()
            taken.append((self._private_bytes() - before) / IDLE_COUNT)
            vmms += fresh  # They stay, or the next would get what these gave back.
        for vmm in vmms:
            await vmm.stop()
        return {"idle_session_bytes": round(statistics.median(taken))}

    async def _touch_served(self, pages: Sequence[int], use: WorkingSetUse, kind: str = "read") -> float:
        """Return the seconds that a VMM takes to touch these pages once it begins."""
        vmm = await self._start(kind, pages, use)
        took_s = await vmm.go()
        await vmm.stop()
        return took_s

    async def _start(self, kind: str, pages: Sequence[int], use: WorkingSetUse) -> "Vmm":
        """Start a VMM in a session of its own, ready to begin."""
        self._number += 1
        name = f"s{self._number}"
        socket = await self._client.open_session(name, self._base, BASE_BYTES, working_set=use)
        return await self._spawn(
            "touch", kind, str(BASE_BYTES), self._list(pages), "uffd", str(socket), name=name
        )

    async def _spawn(self, *arguments: str, name: str = "") -> "Vmm":
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(self._vmm, *arguments, stdin=pipe, stdout=pipe)
        vmm = Vmm(process, self._client, name)
        await vmm.wait_ready()
        return vmm

    def _working_set(self) -> list[int]:
        """Return pages in runs, in an order that is not that of their addresses, as a guest touches them."""
        free = list(range(BASE_BYTES // PAGE_BYTES // RUN_PAGES_MAX))
        self._random.shuffle(free)
        runs: list[list[int]] = []
        while sum(map(len, runs)) < SET_BYTES // PAGE_BYTES:
            start = free.pop() * RUN_PAGES_MAX
            runs.append(list(range(start, start + self._random.randint(1, RUN_PAGES_MAX))))
        return [page for run in runs for page in run]

    def _list(self, pages: Sequence[int]) -> str:
        path = self._folder / "pages"
        path.write_bytes(struct.pack(f"<{len(pages)}I", *pages))
        return str(path)

    def _private_bytes(self) -> int:
        text = Path(f"/proc/{self._pid}/smaps_rollup").read_text()
        fields = dict(line.split(":") for line in text.splitlines()[1:])
        return sum(int(fields[name].split()[0]) << 10 for name in ("Private_Dirty", "Private_Clean"))


class Vmm:
    """A running native/pager/examples/vmm.rs."""

    def __init__(self, process: asyncio.subprocess.Process, client: PagerClient, name: str) -> None:
        self._process, self._client, self.name = process, client, name
        self.pid = process.pid

    async def wait_ready(self) -> None:
        line = await self._line()
        if line != b"ready\n":
            raise SystemExit(f"a VMM said {line!r}")

    async def go(self) -> float:
        """Let it begin; return the seconds it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return float(json.loads(await self._line())["took_ns"]) / 1e9

    async def stop(self) -> None:
        """Let it end, and wait until its session, if any, has ended with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if await self._process.wait():
            raise SystemExit("a VMM ended badly")
        while self.name and any(s.id == self.name for s in (await self._client.statistics()).sessions):
            pass

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()


def _confine(pid: int, cores: Sequence[int]) -> None:
    """Have all threads of a process run on these cores alone."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def _rates(name: str, top: tuple[str, list[float]], bottom: tuple[str, list[float]]) -> dict[str, float]:
    (top_name, over), (bottom_name, under) = top, bottom
    over_median, under_median = statistics.median(over), statistics.median(under)
    ratio = round(over_median / under_median, 3)
    return {name: ratio, top_name: round(over_median), bottom_name: round(under_median)}


async def main(rounds: int, *, as_json: bool) -> None:
    load_before = os.getloadavg()[0]
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="pager-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, folder)
        vmm = build_example("ramet-pager", "vmm")
        supervisor = PagerSupervisor(folder / "pagers", native_program(PAGER_PROGRAM))
        client = await supervisor.start()
        stack.callback(supervisor.close)
        stack.push_async_callback(supervisor.wait_exited)
        stack.callback(os.kill, supervisor.pid, signal.SIGKILL)
        bench = Bench(folder, vmm, client, supervisor.pid, rounds)
        figures: dict[str, Any] = {}
        figures |= await bench.window_over_page()
        figures |= await bench.replay_over_mapped("write")
        figures |= await bench.replay_over_mapped("read")
        figures |= await bench.two_cores_over_one()
        figures |= await bench.idle_session_bytes()
    figures |= {
        "rounds": rounds,
        "cores": os.cpu_count(),
        "load1_before": round(load_before, 2),
        "load1": round(os.getloadavg()[0], 2),
    }
    if not as_json:
        print_table(("FIGURE", "VALUE"), [(name, f"{value:,}") for name, value in figures.items()])
    print(json.dumps(figures))


def _parse() -> Any:
    parser = argparse.ArgumentParser(prog="./run bench pager", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUND_COUNT, help="rounds of each figure (default 5)")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("a userfaultfd of a kernel's faults takes root")
    return options


if __name__ == "__main__":
    options = _parse()
    asyncio.run(main(options.rounds, as_json=options.json))
