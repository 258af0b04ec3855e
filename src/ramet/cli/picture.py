"""A picture of a burst: one bar per child, one colour per phase, from the end of the capture on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from ramet.cli.figures import ORDER, WAITS

WIDTH: Final = 960
_MARGIN, _RIGHT = 40, 16
_BAR, _GAP, _HEAD, _AXIS, _LEGEND = 8, 2, 30, 26, 24
_COLOURS: Final = {
    "folder": "#b07aa1",
    "network": "#4e79a7",
    "capture": "#dddddd",
    "disk": "#9c755f",
    "vmm_start_wait": "#f6d5b5",
    "vmm_start": "#f28e2b",
    "confirm_wait": "#c8e0c4",
    "load": "#59a14f",
    "identify": "#e15759",
}
_OTHER: Final = "#888888"
_Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Segment:
    """One phase of one child; times in seconds, 0 is the end of the capture."""

    phase: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Panel:
    """The children of one burst, each as its phases."""

    title: str
    bars: tuple[tuple[Segment, ...], ...]


def segments(timings_ms: Mapping[str, float]) -> tuple[Segment, ...]:
    """Lay a child's phases out, one after the other and backwards from its acknowledgement."""
    end_s = timings_ms["since_capture"] / 1000
    found: list[Segment] = []
    for phase in reversed(ORDER):
        took_s = timings_ms.get(phase, 0.0) / 1000
        if took_s > 0:
            found.append(Segment(phase, end_s - took_s, end_s))
            end_s -= took_s
    return tuple(reversed(found))


def draw(panels: Sequence[Panel]) -> str:
    """Return an SVG of bursts below each other, on one scale; bars in the order in which they ended."""
    everything = [segment for panel in panels for bar in panel.bars for segment in bar]
    first_s = min([0.0, *(segment.start_s for segment in everything)])
    last_s = max([0.001, *(segment.end_s for segment in everything)])
    scale = (WIDTH - _MARGIN - _RIGHT) / (last_s - first_s)

    def x(time_s: float) -> float:
        return _MARGIN + (time_s - first_s) * scale

    parts: list[str] = []
    top = 0
    for panel in panels:
        parts.append(_text(_MARGIN, top + 20, panel.title, size=13))
        top += _HEAD
        bottom = top + len(panel.bars) * (_BAR + _GAP)
        for number, bar in enumerate(sorted(panel.bars, key=lambda bar: bar[-1].end_s if bar else 0.0)):
            y = top + number * (_BAR + _GAP)
            parts += [_rectangle(segment, x, y) for segment in bar]
        parts += _axis(first_s, last_s, x, top, bottom)
        top = bottom + _AXIS
    parts += _legend(top)
    height = top + _LEGEND
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _rectangle(segment: Segment, x: _Scale, y: int) -> str:
    left, right = x(segment.start_s), x(segment.end_s)
    took_ms = (segment.end_s - segment.start_s) * 1000
    colour = _COLOURS.get(segment.phase, _OTHER)
    return (
        f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 0.3):.1f}" height="{_BAR}" fill="{colour}">'
        f"<title>{escape(segment.phase)} {took_ms:.1f} ms</title></rect>"
    )


def _axis(first_s: float, last_s: float, x: _Scale, top: int, bottom: int) -> list[str]:
    step_s = _step(last_s - first_s)
    parts = []
    for number in range(int(first_s / step_s), int(last_s / step_s) + 1):
        at = x(number * step_s)
        stroke = "#000000" if number == 0 else "#e4e4e4"
        parts.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}" stroke="{stroke}"/>')
        label = "captured" if number == 0 else f"{number * step_s:g} s"
        parts.append(_text(at, bottom + 13, label, size=10, anchor="middle"))
    return parts


def _step(span_s: float) -> float:
    """Return a round step that divides a span into about ten."""
    step_s = 0.001
    for factor in (2, 2.5, 2) * 6:
        if span_s / step_s <= 10:
            break
        step_s *= factor
    return step_s


def _legend(top: int) -> list[str]:
    parts, left = [], _MARGIN
    for phase in ORDER:
        parts.append(f'<rect x="{left}" y="{top + 4}" width="10" height="10" fill="{_COLOURS[phase]}"/>')
        name = f"{phase} (waiting)" if phase in WAITS and not phase.endswith("_wait") else phase
        parts.append(_text(left + 14, top + 13, name.replace("_", " "), size=10))
        left += 26 + 6 * len(name)
    return parts


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="#333333">'
        f"{escape(text)}</text>"
    )
