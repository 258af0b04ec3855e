"""A burst of forks against its floor, in alternating rounds: ./run bench burst [--count N] [--rounds R] ...

One source with a network card, a disk and the demo's warm service is forked `--count` ways by a daemon, and
then as many bare VMM processes are restored from the same capture (`bench.floor`), at the same width. For
both the clock starts when the capture is complete and stops when the guest has acknowledged its identity.
With `--pools on` the VMMs of both are started before. Medians of the rounds are compared; the first fork and
the capture are told apart. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.comparison import compare, load_report
from bench.floor import Floor
from bench.measure import cpu_s, guest_ram_anonymous_bytes, memcpy_s, private_bytes, resident_bytes, vmm_pids
from bench.recording_daemon import FORGET, Record
from examples.demo import address, ask, daemon, enter_own_namespace, make_image, wait_listening
from ramet.cli.bench import delete_all
from ramet.cli.figures import Figures, by_phase, percentile, phase_rows, times_s, timings
from ramet.cli.output import print_table
from ramet.cli.picture import Panel, draw, segments
from ramet.client.client import Client
from ramet.core.errors import RametError
from ramet.net.bridge import BridgeConfig
from ramet.vmm.qemu.driver import find_accelerator
from ramet.wire_api.codec import encode
from ramet.wire_api.instances import CreateInstance

SOURCE: Final = "source"
MEMORY_BYTES: Final = 256 << 20
SWEEPS: Final = {"count": (1, 5, 25, 100), "width": (1, 2, 4, 8)}
SINGLES_PER_ROUND: Final = 4
POOL_TIMEOUT_S: Final = 300.0
POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured: `rounds` bursts of `count` on each side, `width` children at a time.

    `has_pool`: their VMMs are started ahead.
    """

    count: int
    rounds: int
    width: int
    has_pool: bool = False


@dataclass(slots=True)
class Side:
    """What was measured of the platform, or of the floor."""

    bursts: list[Figures] = field(default_factory=list)
    singles_s: list[float] = field(default_factory=list)
    children: list[Mapping[str, float]] = field(default_factory=list)
    last: list[Mapping[str, float]] = field(default_factory=list)
    """Phases of all children, and of the last burst's."""

    def add(self, count: int, took_s: Sequence[float], phases: Sequence[Mapping[str, float]]) -> None:
        self.bursts.append(Figures.of(count, took_s))
        self.children += phases
        self.last = list(phases)


@dataclass(slots=True)
class Measured:
    """All that was measured in one run; sizes in bytes."""

    plan: Plan
    platform: Side = field(default_factory=Side)
    floor: Side = field(default_factory=Side)
    first_s: float = 0.0
    resident_bytes: int = 0
    pauses_s: list[float] = field(default_factory=list)
    memcpys_s: list[float] = field(default_factory=list)
    cpu_s_per_fork: list[float] = field(default_factory=list)
    ram_private_bytes: list[int] = field(default_factory=list)
    child_private_bytes: list[int] = field(default_factory=list)
    waiting_private_bytes: list[int] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return the JSON object of this run; times in seconds."""
        platform, floor = Figures.median(self.platform.bursts), Figures.median(self.floor.bursts)
        single_s, floor_single_s = (statistics.median(side.singles_s) for side in (self.platform, self.floor))
        pause_s = percentile(self.pauses_s, 0.5)
        return {
            "platform": encode(platform),
            "floor": encode(floor),
            "ratio": {
                "wall": _ratio(platform.wall_s, floor.wall_s),
                "p95": _ratio(platform.p95_s, floor.p95_s),
                "single": _ratio(single_s, floor_single_s),
            },
            "source_pause_s": {"p50": round(pause_s, 5), "max": round(max(self.pauses_s), 5)},
            "pause_over_memcpy": _ratio(pause_s, statistics.median(self.memcpys_s)),
            "daemon_cpu_s_per_fork": round(statistics.median(self.cpu_s_per_fork), 5),
            "guest_ram_private_bytes": int(statistics.median(self.ram_private_bytes)),
            "child_private_bytes": int(statistics.median(self.child_private_bytes)),
            "waiting_private_bytes": int(statistics.median(self.waiting_private_bytes)),
            "resident_bytes": self.resident_bytes,
            "first_s": round(self.first_s, 4),
            "single_s": round(single_s, 4),
            "floor_single_s": round(floor_single_s, 4),
            "phases_s": encode(by_phase(self.platform.children)),
            "width": self.plan.width,
            "rounds": self.plan.rounds,
            "pools": "on" if self.plan.has_pool else "off",
            "accelerator": find_accelerator(),
            "cores": os.cpu_count(),
            "load1": round(os.getloadavg()[0], 2),
        }


class Run:
    """One daemon, one source and the rounds on it."""

    def __init__(self, client: Client, daemon_pid: int, work: Path, measured: Measured) -> None:
        self._client, self._pid, self._work, self._measured = client, daemon_pid, work, measured
        self._record_path, self._number = work / "record.json", 0
        self._cpu_before_s = 0.0

    def boot(self) -> None:
        """Boot the source and fork it once, into cold caches."""
        size = f"{MEMORY_BYTES >> 20}MB"
        self._client.create(
            CreateInstance(name=SOURCE, image="demo:1", size=size, overlay_size="1GB", vcpus=1)
        )
        source = self._client.get(SOURCE)
        wait_listening(address(source))
        ask(address(source), "POST", "/token", "warm")
        self._measured.first_s = self._fork(1, lambda _: None)[0][0]
        (pid,) = vmm_pids([source.id])
        self._measured.resident_bytes = resident_bytes(pid, MEMORY_BYTES)

    def round(self, number: int) -> None:
        """Measure both sides once; who comes first alternates."""
        sides = [self._platform, self._floor]
        for side in sides if number % 2 else reversed(sides):
            side()
        self._singles()
        self._measured.memcpys_s.append(memcpy_s(self._measured.resident_bytes))

    def _platform(self) -> None:
        measured, count = self._measured, self._measured.plan.count

        def look(instances: list[str]) -> None:
            measured.cpu_s_per_fork.append((cpu_s(self._pid) - self._cpu_before_s) / len(instances))
            for pid in vmm_pids(instances):
                measured.ram_private_bytes.append(guest_ram_anonymous_bytes(pid, MEMORY_BYTES))
                measured.child_private_bytes.append(private_bytes(pid))

        took_s, phases = self._fork(count, look)
        measured.platform.add(count, took_s, phases)
        measured.pauses_s.append(max(child["source_pause"] for child in phases) / 1000)

    def _singles(self) -> None:
        """Measure single warm forks, the sides taking turns."""
        for _ in range(SINGLES_PER_ROUND):
            self._measured.platform.singles_s += self._fork(1, lambda _: None)[0]
            with self._floor_of(1) as floor:
                if self._measured.plan.has_pool:
                    floor.start_ahead()
                self._measured.floor.singles_s += floor.run(1)
        with self._floor_of(1) as floor:
            floor.start_ahead()
            self._measured.waiting_private_bytes.append(private_bytes(floor.children[0].pid))

    def _fork(self, count: int, look: Any) -> tuple[list[float], list[Mapping[str, float]]]:
        self._number += 1
        if self._measured.plan.has_pool:
            self._settle_pool(count)
        os.kill(self._pid, FORGET)
        self._client.get(SOURCE)  # It has answered, so it has forgotten.
        self._cpu_before_s = cpu_s(self._pid)
        result = self._client.fork_many(SOURCE, count, f"child-{self._number}")
        made = [fork.instance.id for fork in result.forks if fork.instance is not None]
        if not made:
            raise SystemExit(f"no fork succeeded: {result.forks[0].error}")
        look(made)
        if self._measured.plan.has_pool:
            self._settle_pool(0)  # Nothing is made while the other side is measured.
        delete_all(self._client, made)
        return times_s(result), timings(result)

    def _settle_pool(self, size: int) -> None:
        """Have the pool of the source be of that size, and all of it there."""
        pool = self._client.set_fork_pool(SOURCE, size).fork_pool
        until = time.monotonic() + POOL_TIMEOUT_S
        while (0 if pool is None else pool.waiting) != size or (pool is not None) != bool(size):
            if time.monotonic() > until:
                raise SystemExit(f"the pool did not fill: {pool}")
            time.sleep(POLL_S)
            pool = self._client.get(SOURCE).fork_pool

    def _floor(self) -> None:
        measured, count, width = self._measured, self._measured.plan.count, self._measured.plan.width
        with self._floor_of(count) as floor:
            if measured.plan.has_pool:
                floor.start_ahead()
            took_s = floor.run(width)
            measured.floor.add(count, took_s, [child.phases_ms for child in floor.children])

    def _floor_of(self, count: int) -> Floor:
        return Floor(self._work, Record.load(self._record_path), count, BridgeConfig())


def main() -> int:
    options = _parse()
    enter_own_namespace()
    has_pool = options.pools == "on"
    plans = [Plan(options.count, options.rounds, options.width, has_pool)]
    if options.sweep == "count":
        plans = [Plan(count, options.rounds, options.width, has_pool) for count in SWEEPS["count"]]
    elif options.sweep == "width":
        plans = [Plan(options.count, options.rounds, width, has_pool) for width in SWEEPS["width"]]
    earlier = load_report(options.compare) if options.compare else None
    runs: list[Measured] = []
    try:
        for plan in plans:
            runs.append(measure(plan))
            if not options.json:
                show(runs[-1])
    except RametError as error:
        print(f"bench failed: {error}")
        return 1
    reports = [run.report() for run in runs]
    if options.picture:
        options.picture.write_text(draw(_panels(runs[-1])))
    if earlier is not None and not options.json:
        print_table(("FIGURE", "EARLIER", "NOW", "NOW/EARLIER"), compare(earlier, reports[-1]))
    print(json.dumps(reports[0] if options.sweep is None else {"sweep": options.sweep, "runs": reports}))
    return (
        0 if all(report["platform"]["succeeded"] == report["platform"]["count"] for report in reports) else 1
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench burst", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=25, help="forks in a burst (default 25)")
    parser.add_argument("--rounds", type=int, default=5, help="bursts on either side (default 5)")
    parser.add_argument(
        "--width", type=int, default=os.cpu_count() or 1, help="children at a time (default: the cores)"
    )
    parser.add_argument("--pools", choices=("on", "off"), default="off", help="started VMMs wait for forks")
    parser.add_argument("--sweep", choices=tuple(SWEEPS), help="measure several counts, or widths")
    parser.add_argument("--picture", type=Path, help="write an SVG of who waited where in the last round")
    parser.add_argument("--compare", type=Path, help="a file whose last line is the JSON of an earlier run")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    options = parser.parse_args()
    if not 1 <= options.count <= 900 or options.rounds < 1 or options.width < 1:
        parser.error("--count: 1 to 900; --rounds and --width: at least 1")
    if os.geteuid() != 0:
        parser.error("it makes network interfaces and VMs: run it as root")
    return options


def measure(plan: Plan) -> Measured:
    """Boot a source under a daemon of its own and measure all rounds; nothing is left of it."""
    measured = Measured(plan)
    with _work() as work:
        make_image(work / "image")
        command = (sys.executable, "-m", "bench.recording_daemon", str(work / "record.json"))
        os.environ["RAMET_FORKS__WIDTH"] = str(plan.width)
        with daemon(work, command) as (client, pid):
            client.import_image(str(work / "image"), "demo:1")
            run = Run(client, pid, work, measured)
            run.boot()
            for number in range(plan.rounds):
                run.round(number)
    return measured


@contextmanager
def _work() -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="ramet-bench-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def show(measured: Measured) -> None:
    """Print what was measured, for people."""
    report, plan = measured.report(), measured.plan
    print(f"{plan.count} forks, {plan.width} at a time, {plan.rounds} rounds; medians")
    names = ("wall_s", "mean_s", "p50_s", "p95_s", "max_s")
    rows = []
    for side in ("platform", "floor"):
        single_s = report["single_s" if side == "platform" else "floor_single_s"]
        figures = report[side]
        shown = [f"{figures[name]:.2f} s" for name in names]
        rows.append((side, f"{figures['succeeded']}/{figures['count']}", *shown, f"{single_s * 1000:.0f} ms"))
    print_table(("", "SUCCEEDED", "WALL", "MEAN", "P50", "P95", "MAX", "SINGLE"), rows)
    ratio, pause = report["ratio"], report["source_pause_s"]
    print(f"ratio: wall {ratio['wall']}, p95 {ratio['p95']}, single {ratio['single']}")
    print(
        f"first fork {report['first_s'] * 1000:.0f} ms; source pause {pause['p50'] * 1000:.1f} ms, at most"
        f" {pause['max'] * 1000:.1f}, {report['pause_over_memcpy']} times a memcpy of"
        f" {report['resident_bytes'] >> 20} MiB"
    )
    print(
        f"daemon CPU per fork {report['daemon_cpu_s_per_fork'] * 1000:.1f} ms; a child's private guest RAM"
        f" {report['guest_ram_private_bytes'] / (1 << 20):.1f} MiB, its process's memory"
        f" {report['child_private_bytes'] / (1 << 20):.1f} MiB, that of a waiting one"
        f" {report['waiting_private_bytes'] / (1 << 20):.1f} MiB"
    )
    for name, side_of in (("platform", measured.platform), ("floor", measured.floor)):
        print(f"\n{name}, ms by phase")
        heads, *phases = phase_rows(by_phase(side_of.children))
        print_table(heads, phases)
    print(f"\n{report['cores']} cores ({report['accelerator']}), load {report['load1']}\n")


def _panels(measured: Measured) -> list[Panel]:
    return [
        Panel(f"{name}: {measured.plan.count} forks", tuple(segments(child) for child in side.last))
        for name, side in (("platform", measured.platform), ("floor", measured.floor))
    ]


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else round(value / base, 3)


if __name__ == "__main__":
    sys.exit(main())
