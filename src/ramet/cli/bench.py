"""Measuring a server: `ramet bench burst`."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from ramet.cli.figures import (
    Figures,
    by_phase,
    percentile,
    phase_rows,
    read_metric,
    times_s,
    timings,
)
from ramet.cli.names import invent_name
from ramet.cli.options import connect, json_option
from ramet.cli.output import print_json, print_table
from ramet.cli.picture import Panel, draw, segments
from ramet.client import Client
from ramet.core.errors import Broken
from ramet.wire_api.instances import FORK_COUNT_MAX

CPU_METRIC: Final = "process_cpu_seconds_total"
DELETE_WIDTH: Final = 8


class BurstFailed(Broken):
    """Not one child of a burst could be made."""

    code = "burst_failed"


@dataclass(slots=True)
class Rounds:
    """What was measured over several bursts of the same size."""

    figures: list[Figures] = field(default_factory=list)
    children: list[Mapping[str, float]] = field(default_factory=list)
    """`timings_ms` of every child."""
    pauses_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    fork_count: int = 0

    def report(self) -> dict[str, Any]:
        """Return it as one JSON-able object; times in seconds."""
        return {
            "platform": Figures.median(self.figures),
            "source_pause_s": {"p50": percentile(self.pauses_s, 0.5), "max": max(self.pauses_s)},
            "daemon_cpu_s_per_fork": self.cpu_s / self.fork_count,
            "phases": by_phase(self.children),
            "cores": os.cpu_count(),
            "load1": os.getloadavg()[0],
        }


def measure_burst(client: Client, source: str, count: int, prefix: str, into: Rounds) -> list[str]:
    """Fork `source` into `count` children and note how it went; returns the ids of the children.

    Raises:
        BurstFailed: none could be made.
    """
    before_s = _cpu_s(client)
    result = client.fork_many(source, count, prefix)
    into.cpu_s += _cpu_s(client) - before_s
    made = timings(result)
    if not made:
        reason = next((fork.error.message for fork in result.forks if fork.error is not None), "unknown")
        raise BurstFailed(f"no child of {source} could be made: {reason}")
    into.fork_count += len(made)
    into.figures.append(Figures.of(count, times_s(result)))
    into.children += made
    into.pauses_s.append(max(child["source_pause"] for child in made) / 1000)
    return [fork.instance.id for fork in result.forks if fork.instance is not None]


def delete_all(client: Client, instances: list[str]) -> None:
    """Delete instances, several at a time."""
    with ThreadPoolExecutor(DELETE_WIDTH) as pool:
        for _ in pool.map(client.delete, instances):
            pass


def show_burst(report: Mapping[str, Any]) -> None:
    """Print the figures and the table of phases of `Rounds.report`."""
    figures: Figures = report["platform"]
    names = ("wall_s", "mean_s", "p50_s", "p95_s", "max_s")
    shown = [_seconds(getattr(figures, name)) for name in names]
    print_table(
        ("SUCCEEDED", "WALL", "MEAN", "P50", "P95", "MAX", "SOURCE PAUSE", "DAEMON CPU/FORK"),
        [
            (
                f"{figures.succeeded}/{figures.count}",
                *shown,
                f"{report['source_pause_s']['p50'] * 1000:.1f} ms",
                f"{report['daemon_cpu_s_per_fork'] * 1000:.1f} ms",
            )
        ],
    )
    click.echo()
    heads, *rows = phase_rows(report["phases"])
    print_table([f"{head} ms".upper() if index else head.upper() for index, head in enumerate(heads)], rows)
    click.echo(f"\n{report['cores']} cores, load {report['load1']:.1f}")


@click.group("bench")
def bench_command() -> None:
    """Measure the server."""


@bench_command.command("burst")
@click.argument("source")
@click.option(
    "--count", type=click.IntRange(1, FORK_COUNT_MAX), default=25, show_default=True, help="Forks at once."
)
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Bursts; medians are shown."
)
@click.option("--picture", type=click.Path(path_type=Path), help="Write an SVG of who waited where.")
@json_option
@click.pass_context
def burst_command(
    context: click.Context, source: str, count: int, rounds: int, picture: Path | None, as_json: bool
) -> int:
    """Fork the running instance SOURCE many ways at once, tell how long what took, and remove the children.

    A child's clock starts when the capture of SOURCE is complete and stops when its guest has acknowledged
    its new identity. The first fork is reported apart.
    """
    client = connect(context)
    prefix, first, measured = f"bench-{invent_name()}", Rounds(), Rounds()
    delete_all(client, measure_burst(client, source, 1, f"{prefix}-first", first))
    last: list[Mapping[str, float]] = []
    for number in range(rounds):
        before = len(measured.children)
        delete_all(client, measure_burst(client, source, count, f"{prefix}-{number}", measured))
        last = measured.children[before:]
    if picture is not None:
        bars = tuple(segments(child) for child in last)
        picture.write_text(draw([Panel(f"{count} forks of {source}, last of {rounds} bursts", bars)]))
    report = {**measured.report(), "first_s": first.figures[0].wall_s, "rounds": rounds}
    if as_json:
        print_json(report)
    else:
        show_burst(report)
    return 0 if all(figures.succeeded == count for figures in measured.figures) else 1


def _cpu_s(client: Client) -> float:
    found = read_metric(client.metrics(), CPU_METRIC)
    if found is None:
        raise BurstFailed(f"the server does not tell {CPU_METRIC}", remedy="upgrade the server")
    return found


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
