"""Error over the denoising steps, as an SVG that a page can hold.

Colours come from the page's style sheet by class; lines differ in dashes and markers, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Drawn small, so that its letters stay readable on a telephone.
WIDTH, HEIGHT = 330, 210
LEFT, RIGHT, TOP, BOTTOM = 30, 4, 26, 34
STEPS = (5, 10, 20, 50, 100)  # dB between grid lines


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    points: (timestep, SNR in dB); inf is no error at all, None is a value that is not finite.
    """

    name: str
    points: Sequence[tuple[float, float | None]]


def error_chart(
    label: str, series: Sequence[Series], gate: float | None = None, gate_name: str = "limit"
) -> str:
    """SNR in dB over timesteps, from noise on the left to the picture on the right.

    Args:
        label: what a screen reader says instead.
        series: at most three.
        gate: drawn as a line that values should stay above, with its name.

    Returns an <svg> element. Points without error stand at the upper edge, marked ∞; points that
    are not finite at the lower edge, marked ×.
    """
    values = [v for s in series for _, v in s.points if v is not None and math.isfinite(v)]
    low, high, step = _range([*values, *([] if gate is None else [gate])])
    times = [t for s in series for t, _ in s.points]
    first, last = max(times, default=1.0), min(times, default=0.0)
    if first == last:
        first, last = first + 1, last - 1

    def x(timestep: float) -> float:
        return LEFT + 8 + (first - timestep) / (first - last) * (WIDTH - LEFT - RIGHT - 16)

    def y(value: float | None) -> float:
        if value is None:
            return HEIGHT - BOTTOM
        shown = min(max(value, low), high)
        return TOP + (high - shown) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">',
        '<text class="unit" x="0" y="10">SNR in dB</text>',
    ]
    for tick in range(int(low), int(high) + 1, step):
        at = f"{y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y(tick) + 4:.1f}">{tick}</text>')
    for timestep in _ticks(times):
        parts.append(
            f'<text class="tick middle" x="{x(timestep):.1f}" y="{HEIGHT - BOTTOM + 15}">'
            f"{timestep:g}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="unit middle" x="{middle}" y="{HEIGHT - 3}">timestep</text>')
    if gate is not None:
        at = f"{y(gate):.1f}"
        parts.append(f'<line class="gate" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="gate-name end" x="{WIDTH - RIGHT}" y="{y(gate) - 5:.1f}">'
            f"{escape(gate_name)} {gate:g} dB</text>"
        )
    for number, one in enumerate(series, 1):
        parts += _line(number, [(x(t), y(v), v) for t, v in one.points])
    return "\n".join([*parts, "</svg>"])


def swatch(number: int) -> str:
    """The line and marker of the n-th series (from 1), for a legend."""
    return (
        '<svg class="chart swatch" viewBox="0 0 30 12" aria-hidden="true">'
        f'<path class="line series-{number}" d="M1 6H29"/>{_marker(number, 15, 6)}</svg>'
    )


def _line(number: int, points: Sequence[tuple[float, float, float | None]]) -> list[str]:
    """A polyline that is broken where a value is not finite, and its markers."""
    parts, path, pen = [], "", "M"
    for x, y, value in points:
        if value is None:
            pen = "M"
            parts.append(f'<text class="lost middle" x="{x:.1f}" y="{y:.1f}">×</text>')
            continue
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
        parts.append(_marker(number, x, y))
        if math.isinf(value):
            mark = "∞" if value > 0 else "−∞"
            parts.append(f'<text class="tick middle" x="{x:.1f}" y="{y - 6:.1f}">{mark}</text>')
    line = [f'<path class="line series-{number}" d="{path}"/>'] if path else []
    return line + parts


def _marker(number: int, x: float, y: float) -> str:
    if number == 1:
        return f'<circle class="mark series-1" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    if number == 2:
        return (
            f'<rect class="mark series-2" x="{x - 2.6:.1f}" y="{y - 2.6:.1f}" '
            'width="5.2" height="5.2"/>'
        )
    d = f"M{x:.1f} {y - 3.4:.1f}l3.4 3.4l-3.4 3.4l-3.4 -3.4z"
    return f'<path class="mark series-3" d="{d}"/>'


def _range(values: Sequence[float]) -> tuple[float, float, int]:
    """(lowest, highest, distance) of the grid lines, at most seven."""
    low, high = (min(values), max(values)) if values else (0.0, 60.0)
    for step in STEPS:
        bottom, top = math.floor((low - 2) / step) * step, math.ceil((high + 2) / step) * step
        if (top - bottom) / step <= 6:
            break
    return bottom, top, step


def _ticks(times: Sequence[float]) -> list[float]:
    """At most six of the timesteps, evenly picked, the first and the last among them."""
    every = sorted(set(times), reverse=True)
    if len(every) <= 6:
        gap = (every[0] - every[-1]) / 12 if every else 0
        kept: list[float] = []
        for t in every:
            if not kept or kept[-1] - t > gap:
                kept.append(t)
        return kept
    return [every[round(i * (len(every) - 1) / 5)] for i in range(6)]
