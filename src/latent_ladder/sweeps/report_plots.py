"""Plots of a sweep: detail against motion, and each number along the first numeric axis."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from latent_ladder.sweeps.axes import Axis, short_path
from latent_ladder.sweeps.point_results import SHOWN, PointResult
from latent_ladder.sweeps.recommend import Choice
from latent_ladder.sweeps.svg_plot import Dot, Plot, color_of, series_names, svg

ALONG = ("motion_kept", "detail_added_db", "structure_similarity", "flicker")
MOST_LABELS, MOST_SERIES = 48, 6


def plots(points: Sequence[PointResult], choice: Choice, axes: Sequence[Axis]) -> str:
    """The plots as HTML; a sentence if there is nothing to plot."""
    done = [p for p in points if p.number_of("motion_kept") is not None]
    if not done:
        return "<p>No point was measured against a draft.</p>"
    numeric = next((a for a in axes if a.numbers is not None and len(a.values) > 1), None)
    series = _series(done, axes, numeric)
    dots = _dots(done, series, choice, "motion_kept", "detail_added_db")
    names = series_names(dots)
    main = Plot(
        "Detail added against motion kept",
        "motion kept (further right: more like the draft)",
        "detail added, dB",
        dots,
        line_y=0.0,
        least_x=choice.least_kept,
        shade="loses motion",
        labels=len(dots) <= MOST_LABELS,
        lines=numeric is not None and len(names) <= MOST_SERIES,
    )
    one = f'<div class="panel">{svg(main)}{_legend(names)}</div>'
    if numeric is None:
        return f'<div class="plots alone">{one}</div>'
    small = "".join(_along(done, series, choice, numeric, name) for name in ALONG)
    return f'<div class="plots">{one}<div class="panel small">{small}</div></div>'


def _series(
    points: Sequence[PointResult], axes: Sequence[Axis], numeric: Axis | None
) -> dict[int, str]:
    """The series of each point: its settings on all axes but the numeric one."""
    varied = [a.path for a in axes if len(a.values) > 1 and a is not numeric]
    return {
        p.number: ", ".join(
            f"{short_path(path, varied)} {p.settings[path]}"
            for path in varied
            if path in p.settings
        )
        for p in points
    }


def _dots(
    points: Sequence[PointResult], series: dict[int, str], choice: Choice, x: str, y: str
) -> list[Dot]:
    lost = {n for s in choice.settings if not s.fits for n in s.points}
    found = []
    for point in points:
        at_x, at_y = _value(point, x), _value(point, y)
        if at_x is not None and at_y is not None:
            said = ", ".join(f"{p}={v}" for p, v in point.settings.items())
            title = f"#{point.number} {said}: {_label(x, at_x)}, {_label(y, at_y)}"
            mine, number = series[point.number], point.number
            dot = Dot(at_x, at_y, number, title, mine, number == choice.point, number in lost)
            found.append(dot)
    return found


def _value(point: PointResult, name: str) -> float | None:
    """A number of the point, or one of its settings."""
    return float(point.settings[name]) if name in point.settings else point.number_of(name)


def _label(name: str, value: float) -> str:
    label, unit, _ = SHOWN.get(name, (name, "", ""))
    return f"{label} {value:.3g} {unit}".strip()


def _along(
    points: Sequence[PointResult], series: dict[int, str], choice: Choice, axis: Axis, name: str
) -> str:
    """Plot of one number along the axis; empty if no point has it."""
    dots = sorted(_dots(points, series, choice, axis.path, name), key=lambda d: d.x)
    if not dots:
        return ""
    label, unit, _ = SHOWN[name]
    title = f"{label}, {unit}" if unit else label
    zero = 0.0 if name == "detail_added_db" else None
    few = len(series_names(dots)) <= MOST_SERIES
    plot = Plot(title, axis.path, "", dots, line_y=zero, size=(320, 230), labels=False, lines=few)
    return f"<div>{svg(plot)}</div>"


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2 or len(names) > MOST_SERIES:
        return ""
    rows = "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true"><circle class="c{color_of(names, n)}" '
        f'cx="6" cy="6" r="5"/></svg>{escape(n)}</li>'
        for n in names
    )
    return f'<ul class="legend">{rows}</ul>'
