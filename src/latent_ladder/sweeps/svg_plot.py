"""Plots of a sweep as SVG text: lines, points and ticks, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLORS = 6
"""Number of series colours in the style sheet; further series share the last."""


@dataclass(frozen=True)
class Dot:
    """One point of a plot: position, number as label, and ``title`` as tooltip."""

    x: float
    y: float
    number: int
    title: str
    series: str = ""
    marked: bool = False
    faded: bool = False


@dataclass(frozen=True)
class Plot:
    """One plot. ``line_y`` is a horizontal line; the area left of ``least_x`` is shaded.

    ``lines`` joins the dots of a series from left to right; ``labels`` writes their numbers.
    """

    title: str
    x_label: str
    y_label: str
    dots: Sequence[Dot]
    line_y: float | None = None
    least_x: float | None = None
    shade: str = ""
    size: tuple[int, int] = (640, 380)
    labels: bool = True
    lines: bool = True


LEFT, RIGHT, TOP, BOTTOM = 56, 20, 34, 44
INSIDE = 14
"""Margin in pixels between the dots and the left and right ends."""


@dataclass(frozen=True)
class _Scale:
    """Mapping from values to pixels along one axis."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values from below ``low`` to above ``high``; steps are 1, 2 or 5 by a power of 10."""
    if high <= low:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def svg(plot: Plot) -> str:
    """The plot as an ``<svg>`` element that scales with the page."""
    width, height = plot.size
    xs, ys = [d.x for d in plot.dots], [d.y for d in plot.dots]
    if plot.least_x is not None:
        xs.append(plot.least_x)
    if plot.line_y is not None:
        ys.append(plot.line_y)
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x = _Scale(x_ticks[0], x_ticks[-1], LEFT + INSIDE, width - RIGHT - INSIDE)
    y = _Scale(y_ticks[0], y_ticks[-1], height - BOTTOM, TOP)
    parts = [
        *_frame(plot, x, y, x_ticks, y_ticks),
        *(_series_lines(plot, x, y) if plot.lines else ()),
        *(_dot(plot, dot, x, y) for dot in sorted(plot.dots, key=lambda d: d.marked)),
    ]
    head = (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(plot.title)}" xmlns="http://www.w3.org/2000/svg">'
    )
    return head + "".join(parts) + "</svg>"


def _frame(
    plot: Plot, x: _Scale, y: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]
) -> list[str]:
    left, right, top, bottom = x.start - INSIDE, x.stop + INSIDE, y.stop, y.start
    out = [f'<text class="title" x="{left}" y="18">{escape(plot.title)}</text>']
    if plot.least_x is not None:
        edge = max(left, min(x.at(plot.least_x), right))
        out.append(
            f'<rect class="shade" x="{left}" y="{top}" width="{edge - left:.1f}" '
            f'height="{bottom - top}"/>'
            f'<line class="limit" x1="{edge:.1f}" x2="{edge:.1f}" y1="{top}" y2="{bottom}"/>'
        )
        if edge - left > 70:
            out.append(
                f'<text class="note" x="{edge - 6:.1f}" y="{top + 16}" text-anchor="end">'
                f"{escape(plot.shade)}</text>"
            )
    for value in y_ticks:
        at = y.at(value)
        out.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}'
            "</text>"
        )
    for value in x_ticks:
        out.append(
            f'<text class="tick" x="{x.at(value):.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{_short(value)}</text>"
        )
    if plot.line_y is not None:
        at = y.at(plot.line_y)
        out.append(f'<line class="base" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
    middle = (left + right) / 2
    out.append(
        f'<text class="label" x="{middle}" y="{bottom + 36}" text-anchor="middle">'
        f"{escape(plot.x_label)}</text>"
        f'<text class="label" transform="translate(14 {(top + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(plot.y_label)}</text>'
    )
    return out


def series_names(dots: Sequence[Dot]) -> list[str]:
    """The series in the order they first occur."""
    return list(dict.fromkeys(dot.series for dot in dots))


def color_of(names: Sequence[str], series: str) -> int:
    """Index of a series' colour in the style sheet."""
    return min(names.index(series), COLORS - 1)


def _series_lines(plot: Plot, x: _Scale, y: _Scale) -> list[str]:
    names = series_names(plot.dots)
    out = []
    for name in names:
        mine = [d for d in plot.dots if d.series == name]
        if len(mine) > 1:
            path = " ".join(f"{x.at(d.x):.1f},{y.at(d.y):.1f}" for d in mine)
            out.append(f'<polyline class="line c{color_of(names, name)}" points="{path}"/>')
    return out


def _dot(plot: Plot, dot: Dot, x: _Scale, y: _Scale) -> str:
    at_x, at_y = x.at(dot.x), y.at(dot.y)
    color = color_of(series_names(plot.dots), dot.series)
    ring = f'<circle class="ring" cx="{at_x:.1f}" cy="{at_y:.1f}" r="11"/>' if dot.marked else ""
    text = ""
    if plot.labels:
        weight = " marked" if dot.marked else ""
        over = any(0 < x.at(d.x) - at_x < 30 and abs(y.at(d.y) - at_y) < 18 for d in plot.dots)
        place = f'x="{at_x - 9:.1f}" y="{at_y + 16:.1f}" text-anchor="end"'
        place = place if over else f'x="{at_x + 9:.1f}" y="{at_y - 8:.1f}"'
        text = f'<text class="number{weight}" {place}>{dot.number}</text>'
    faded = " faded" if dot.faded else ""
    return (
        f'<a href="#p{dot.number}" class="dot{faded}" data-point="{dot.number}">'
        f"<title>{escape(dot.title)}</title>{ring}"
        f'<circle class="c{color}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="5.5"/>{text}</a>'
    )


def _short(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
