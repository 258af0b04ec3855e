"""A run beside an earlier one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

FIGURES: Final = (
    *("platform.wall_s", "platform.mean_s", "platform.p95_s", "floor.wall_s", "floor.p95_s"),
    *("ratio.wall", "ratio.p95", "ratio.single", "source_pause_s.p50", "pause_over_memcpy"),
    *("daemon_cpu_s_per_fork", "guest_ram_private_bytes", "load1"),
)


def load_report(path: Path) -> Mapping[str, Any]:
    """Read the JSON object on the last line of a file.

    Raises:
        SystemExit: there is none.
    """
    try:
        found = json.loads(path.read_text().strip().splitlines()[-1])
    except (OSError, ValueError, IndexError) as error:
        raise SystemExit(f"{path} does not end with the JSON of a run: {error}") from error
    if not isinstance(found, dict) or "platform" not in found:
        raise SystemExit(f"{path} does not end with the JSON of one run")
    return found


def compare(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return a row for each figure: its name, what it was, what it is, and how they compare."""
    rows = []
    for name in FIGURES:
        before, after = _find(earlier, name), _find(now, name)
        change = f"{after / before:.2f}" if before and after is not None else "-"
        rows.append((name, _show(before), _show(after), change))
    return rows


def _find(report: Mapping[str, Any], name: str) -> float | None:
    value: Any = report
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
