"""What a fork costs the daemon itself, however many instances there are: ./run bench control [--json]

Fake VMMs stand in for guests, so what is left is the control plane: fleet and actors, records and journal,
the network's bookkeeping and its TAPs, disk layers, the capture and the guest protocol. A source is forked in
small bursts beside 100, 1,000 and 10,000 other instances, which are stopped; medians of the bursts are shown.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.demo import enter_own_namespace
from examples.make_image import make_oci_layout
from ramet.cli.output import print_table
from ramet.core.ids import InstanceId, mint_id
from ramet.core.spec import InstanceIdentity, InstanceRecord, State
from ramet.images import Catalog, ImageLimits
from ramet.vmm.fake.nursery import Nursery
from tests.effects.world import Daemon, World, new_folder

LEVELS: Final = (100, 1_000, 10_000)
BURST_COUNT: Final = 10
ROUND_COUNT: Final = 9
WARM_ROUND_COUNT: Final = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """The medians of the bursts beside `existing` instances, for one fork: milliseconds."""

    existing: int
    cpu_ms: float
    wall_ms: float


async def main(levels: Sequence[int], rounds: int, *, as_json: bool) -> None:
    with ExitStack() as stack:
        images = new_folder()
        make_oci_layout(images / "oci", "demo:1", {"etc/name": (0o644, b"demo")}, {}, {"Cmd": ["sleep"]})
        catalog = Catalog(images / "images", ImageLimits())
        await catalog.open()
        await catalog.import_path(images / "oci", name="demo:1")
        world = World(new_folder(), images / "images")
        world.nursery = Nursery("bench-control")
        stack.callback(world.nursery.close)
        try:
            async with world.daemon() as daemon:
                costs = await _measure(daemon, levels, rounds)
        finally:
            await world.aclose()
    growth = {
        "cpu": round(costs[-1].cpu_ms / costs[0].cpu_ms, 3),
        "wall": round(costs[-1].wall_ms / costs[0].wall_ms, 3),
    }
    if not as_json:
        rows = [(f"{cost.existing:,}", f"{cost.cpu_ms:.2f}", f"{cost.wall_ms:.2f}") for cost in costs]
        print_table(("INSTANCES", "CPU MS/FORK", "WALL MS/FORK"), rows)
    print(
        json.dumps(
            {
                "levels": [
                    {"existing": c.existing, "cpu_ms": round(c.cpu_ms, 3), "wall_ms": round(c.wall_ms, 3)}
                    for c in costs
                ],
                "growth": growth,
                "cores": os.cpu_count(),
                "load1": round(os.getloadavg()[0], 2),
            }
        )
    )


async def _measure(daemon: Daemon, levels: Sequence[int], rounds: int) -> list[Cost]:
    await daemon.fleet.create("source", daemon.spec)
    for number in range(WARM_ROUND_COUNT):
        await _burst(daemon, f"warm-{number}")
    costs, existing = [], 0
    for level in levels:
        for number in range(existing, level):
            _add(daemon, f"other-{number}")
        existing = level
        taken = [await _burst(daemon, f"child-{level}-{number}") for number in range(rounds)]
        cpu_ms, wall_ms = (statistics.median(values) for values in zip(*taken, strict=True))
        costs.append(Cost(level, cpu_ms, wall_ms))
    return costs


async def _burst(daemon: Daemon, prefix: str) -> tuple[float, float]:
    """Fork the source some ways, and remove the children; returns CPU and wall time of one fork, in ms."""
    names = [f"{prefix}-{number}" for number in range(BURST_COUNT)]
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    outcomes = await daemon.fleet.fork("source", names)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    for outcome in outcomes:
        if outcome.error is not None:
            raise SystemExit(f"a fork failed: {outcome.error}")
        await daemon.fleet.delete(outcome.name)
    return cpu_s * 1000 / BURST_COUNT, wall_s * 1000 / BURST_COUNT


def _add(daemon: Daemon, name: str) -> None:
    """Have one more instance, stopped, as a start of the daemon finds it."""
    layer = daemon.site.layers.create(daemon.spec.overlay_bytes)
    identity = InstanceIdentity(InstanceId(mint_id()), name, None, "0" * 32, time.time(), None)
    record = InstanceRecord(daemon.spec, identity, State.STOPPED, layer=layer)
    daemon.site.database.save(record)
    daemon.fleet._add(record)


def _levels(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.split(",")))


def _parse() -> Any:
    parser = argparse.ArgumentParser(prog="./run bench control", description=__doc__.partition("\n")[0])
    parser.add_argument("--levels", type=_levels, default=LEVELS, help="how many others (100,1000,10000)")
    parser.add_argument("--rounds", type=int, default=ROUND_COUNT, help="bursts at each level (default 9)")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it makes network interfaces: run it as root")
    return options


if __name__ == "__main__":
    options = _parse()
    enter_own_namespace()
    asyncio.run(main(options.levels, options.rounds, as_json=options.json))
