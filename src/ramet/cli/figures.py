"""The figures of a burst: of one, of the medians of several, and by phase. Times in seconds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ramet.wire_api.instances import ForkManyResult

ORDER: Final = (
    *("folder", "network", "capture", "disk"),
    *("vmm_start_wait", "vmm_start", "confirm_wait", "load", "identify"),
)
"""The phases of a fork as they come one after the other; others lie within these."""
WAITS: Final = frozenset({"capture", "vmm_start_wait", "confirm_wait"})


@dataclass(frozen=True, slots=True)
class Figures:
    """How a burst of `count` children went; None where none succeeded."""

    count: int
    succeeded: int
    wall_s: float | None
    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    max_s: float | None

    @classmethod
    def of(cls, count: int, times_s: Sequence[float]) -> "Figures":
        """Return the figures of one burst whose children's clocks started together."""
        if not times_s:
            return cls(count, 0, None, None, None, None, None)
        return cls(
            count,
            len(times_s),
            wall_s=max(times_s),
            mean_s=statistics.fmean(times_s),
            p50_s=percentile(times_s, 0.5),
            p95_s=percentile(times_s, 0.95),
            max_s=max(times_s),
        )

    @classmethod
    def median(cls, rounds: Sequence["Figures"]) -> "Figures":
        """Return the median of each figure; of successes the worst round's."""

        def middle(values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return statistics.median(known) if known else None

        return cls(
            rounds[0].count,
            min(one.succeeded for one in rounds),
            wall_s=middle([one.wall_s for one in rounds]),
            mean_s=middle([one.mean_s for one in rounds]),
            p50_s=middle([one.p50_s for one in rounds]),
            p95_s=middle([one.p95_s for one in rounds]),
            max_s=middle([one.max_s for one in rounds]),
        )


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """How long one phase took over all children."""

    mean_s: float
    p50_s: float
    p95_s: float
    max_s: float


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that `share` of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def by_phase(children: Sequence[Mapping[str, float]]) -> dict[str, PhaseFigures]:
    """Return the figures of every phase of children's `timings_ms`, in the order in which they come."""
    names = dict.fromkeys((*ORDER, *(name for child in children for name in child)))
    found = {}
    for name in names:
        values = [child[name] / 1000 for child in children if name in child]
        if values:
            found[name] = PhaseFigures(
                statistics.fmean(values), percentile(values, 0.5), percentile(values, 0.95), max(values)
            )
    return found


def phase_rows(phases: Mapping[str, PhaseFigures]) -> list[tuple[str, ...]]:
    """Return a table of phases in ms, waiting and working side by side: heads, then rows."""
    rows: list[tuple[str, ...]] = [("phase", "wait mean", "wait p95", "work mean", "work p95")]
    waiting = {f"{name}_wait" for name in phases} & phases.keys()
    for name, figures in phases.items():
        if name in waiting:
            continue
        wait = phases.get(f"{name}_wait")
        shown = [_ms(part, figure) for part in (wait, figures) for figure in ("mean_s", "p95_s")]
        if name in WAITS:
            shown = shown[2:] + shown[:2]
        rows.append((name, *shown))
    return rows


def times_s(result: ForkManyResult) -> list[float]:
    """Return how long each child took that was made, from the end of the capture to its acknowledgement."""
    return [child["since_capture"] / 1000 for child in timings(result)]


def timings(result: ForkManyResult) -> list[Mapping[str, float]]:
    """Return the `timings_ms` of the children that were made."""
    return [fork.timings_ms or {} for fork in result.forks if fork.instance is not None]


def read_metric(text: str, name: str) -> float | None:
    """Return the value of a metric without labels from Prometheus' text format."""
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    return None


def _ms(figures: PhaseFigures | None, name: str) -> str:
    return "" if figures is None else f"{getattr(figures, name) * 1000:.1f}"
