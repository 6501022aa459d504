"""Report of a sweep: one HTML file that loads nothing from other files or servers.

Images and small videos are embedded, of many or large points only as many as
:data:`PICTURE_BYTES` and :data:`VIDEO_BYTES` allow, the middle frames first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from latent_ladder.pages.parts import BASE_CSS, BASE_JS, data_uri, size_and_theme, write_html
from latent_ladder.sweeps.axes import short_path
from latent_ladder.sweeps.export import pictures_folder
from latent_ladder.sweeps.point_results import SHOWN, PointResult
from latent_ladder.sweeps.recommend import Choice
from latent_ladder.sweeps.report_files import PAGE
from latent_ladder.sweeps.report_plots import plots
from latent_ladder.sweeps.sweep_plan import Sweep
from latent_ladder.sweeps.sweep_run import SweepResult

PICTURE_BYTES, VIDEO_BYTES = 32_000_000, 12_000_000
MOST_CARDS = 200
"""Points with an image in the page; further ones are in the table and the plots only."""
CARD_NUMBERS = ("motion_kept", "detail_added_db", "structure_similarity", "flicker", "seconds")
FAULT_LABELS = {"trembles": "flickers"}
"""Labels of faults on the page, where they differ from their names in ``sweep.json``."""
DIGITS = {"detail_added_db": 1, "seconds": 1}
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Report:
    """Content of the page."""

    sweep: Sweep
    result: SweepResult
    choice: Choice
    folder: Path
    command: str = ""

    @property
    def paths(self) -> list[str]:
        """The fields that differ between points."""
        return [axis.path for axis in self.sweep.axes if len(axis.values) > 1]

    def describe(self, point: PointResult) -> str:
        """A point's settings in a line, without those that all points share."""
        paths = self.paths
        varied = [f"{short_path(p, paths)} {v}" for p, v in point.settings.items() if p in paths]
        return " · ".join(varied) or "unchanged"


def write_page(report: Report) -> Path:
    """Write the page. Raises :class:`MediaError`."""
    return write_html(report.folder / PAGE, html(report))


def html(report: Report) -> str:
    """The page as HTML text."""
    from latent_ladder._version import __version__

    request = report.sweep.prepared.request
    parts = {name: (HERE / f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    return Template(parts["html"]).substitute(
        base_css=BASE_CSS.read_text("utf-8"),
        base_js=BASE_JS.read_text("utf-8"),
        css=parts["css"],
        js=parts["js"],
        title=escape(request.prompt),
        meta=_meta(report),
        verdict=_verdict(report),
        plots=plots(report.result.points, report.choice, report.sweep.axes),
        bar=_bar(report),
        cards="\n".join(_cards(report)),
        table=_table(report),
        words=_explanations(report),
        request=escape(request.to_toml()),
        footer=f"latent-ladder {escape(__version__)}, run {escape(report.result.run)}"
        + (f", <code>{escape(report.command)}</code>" if report.command else ""),
    )


# --- the head ------------------------------------------------------------------------------------


def _meta(report: Report) -> str:
    request, points = report.sweep.prepared.request, report.result.points
    failed = sum(p.status == "failed" for p in points)
    width, height = request.resolved.final_size
    said = [
        f"<b>{len(points)}</b> points" + (f", <b>{failed}</b> failed" if failed else ""),
        f"{width}×{height}, {request.frames} frames at {float(request.fps):g} fps",
        f"seed {request.seed}",
    ]
    said += [f"preset {escape(request.preset)}"] if request.preset else []
    if report.sweep.source and report.sweep.source != request.prompt:
        said.append(f"from {escape(report.sweep.source)}")
    said += [
        f"<code>{escape(axis.path)}={escape(axis.values[0])}</code>"
        for axis in report.sweep.axes
        if len(axis.values) == 1
    ]
    return " · ".join(said)


def _verdict(report: Report) -> str:
    choice = report.choice
    heads = {
        "recommended": f"Take point {choice.point}",
        "cannot tell": f"No clear winner; point {choice.point} keeps the most motion of the best",
        "adds nothing": "No point adds detail",
        "not measured": "No recommendation",
    }
    head = (
        heads[choice.outcome]
        if choice.point or choice.outcome != "cannot tell"
        else "No clear winner"
    )
    use = ""
    if choice.point is not None:
        command = f"ladder refine {report.result.run}:{choice.point} -o clip.mp4"
        use = f"<br><code>{escape(command)}</code>"
    kind = choice.outcome.replace(" ", "-")
    return (
        f'<section class="verdict {kind}" aria-label="Recommendation"><div>'
        f"<strong>{escape(head)}</strong><p>{escape(choice.why)}{use}</p></div></section>"
    )


# --- side by side --------------------------------------------------------------------------------


def _bar(report: Report) -> str:
    indices = next((p.shown for p in _points_with_images(report)), ())
    frames = "".join(
        f'<button type="button" aria-pressed="false">{index}</button>'
        for index in _fitting_frames(report, indices)
    )
    largest = max((max(p.size) for p in report.result.points), default=0)
    start = 4 if largest <= 768 else 2
    pressed = {z: str(z == start).lower() for z in (1, 2, 4, 8)}
    zooms = "".join(
        f'<button type="button" data-zoom="{z}" aria-pressed="{is_on}">{z}×</button>'
        for z, is_on in pressed.items()
    )
    hold = '<button type="button" id="hold">Hold to see the draft</button>'
    return (
        '<div class="bar" role="toolbar" aria-label="View options">'
        f'<fieldset class="frames"><legend>Frame</legend>{frames}</fieldset>'
        f'<fieldset class="zoom"><legend>Zoom</legend>{zooms}</fieldset>'
        '<button type="button" id="play" aria-pressed="false">Play all</button>'
        f"{hold if report.result.drafts else ''}"
        f"{size_and_theme(340)}</div>"
    )


def _points_with_images(report: Report) -> list[PointResult]:
    """The points with images, in order."""
    return [p for p in report.result.points if p.frames][:MOST_CARDS]


def _fitting_frames(report: Report, indices: Sequence[int]) -> list[int]:
    """The frames of each point that fit into the page: all, or three of them, or the middle one."""
    if not indices:
        return []
    folder = pictures_folder(report.folder)
    files = [folder / p.frames[len(p.frames) // 2] for p in _points_with_images(report)]
    each = sum(file.stat().st_size for file in files) * 4 / 3
    middle = len(indices) // 2
    for chosen in (list(indices), [indices[0], indices[middle], indices[-1]]):
        if each * len(chosen) <= PICTURE_BYTES:
            return list(dict.fromkeys(chosen))
    return [indices[middle]]


def _cards(report: Report) -> Iterable[str]:
    folder = pictures_folder(report.folder)
    pictured = {p.number for p in _points_with_images(report)}
    clips = [p.clip for p in report.result.points if p.clip and p.number in pictured]
    size = sum((folder / clip).stat().st_size for clip in clips) * 4 / 3
    for n, draft in enumerate(report.result.drafts.values()):
        name = "The upsampled draft, not refined"
        several = len(report.result.drafts) > 1
        text = _picture(report, draft, size <= VIDEO_BYTES)
        mark = "data-draft" if n == 0 and not several else ""
        yield _card(f"d{n + 1}", "", name, text + _numbers(draft), ("", ""), mark)
    for point in report.result.points:
        badge = _badge(point, report.choice)
        if point.status == "failed":
            text = f'<p class="error">{escape(point.error or "failed")}</p>'
        elif point.number in pictured:
            text = _picture(report, point, size <= VIDEO_BYTES) + _numbers(point)
        else:
            continue
        chosen = "chosen" if point.number == report.choice.point else ""
        yield _card(str(point.number), chosen, report.describe(point), text, badge)


def _card(
    number: str, kind: str, name: str, text: str, badge: tuple[str, str], mark: str = ""
) -> str:
    said, tone = badge
    pill = f'<span class="badge {tone}">{escape(said)}</span>' if said else ""
    label = f'<span class="no">{f"#{number}" if number.isdecimal() else "draft"}</span>'
    return (
        f'<article class="card {kind}" id="p{number}" data-point="{number}" {mark}>'
        f'<header>{label}{pill}<h3 title="{escape(name)}">{escape(name)}</h3></header>'
        f"{text}</article>"
    )


def _badge(point: PointResult, choice: Choice) -> tuple[str, str]:
    if point.status == "failed":
        return "failed", "bad"
    setting = next((s for s in choice.settings if point.number in s.points), None)
    if point.number == choice.point:
        return (
            ("recommended", "good")
            if choice.outcome == "recommended"
            else ("most motion of the best", "warn")
        )
    if point.number in choice.tied:
        return "equally good", "warn"
    fault = None if setting is None else setting.fault
    return ("", "") if fault is None else (FAULT_LABELS.get(fault, fault), "bad")


def _picture(report: Report, point: PointResult, with_video: bool) -> str:
    folder = pictures_folder(report.folder)
    wanted = _fitting_frames(report, point.shown)
    names = dict(zip(point.shown, point.frames, strict=False))
    width, height = point.size
    strip = "".join(
        f'<button type="button" aria-label="frame {index}" aria-pressed="false">'
        f'<img id="i{point.number}-{point.key[-6:]}-{index}" alt="frame {index}" '
        f'src="{data_uri(folder / names[index], "image/webp")}"></button>'
        for index in wanted
        if index in names
    )
    video = ""
    if with_video and point.clip:
        source = data_uri(folder / point.clip, "video/mp4")
        video = f'<video hidden muted loop playsinline preload="none" src="{source}"></video>'
    return (
        f'<div class="stage" tabindex="0" role="img" aria-label="frame" '
        f'style="aspect-ratio:{width}/{height}"><img alt="">{video}<div class="lens"></div></div>'
        f'<div class="strip">{strip}</div>'
    )


def _numbers(point: PointResult) -> str:
    rows = []
    for name in CARD_NUMBERS:
        value = point.number_of(name)
        if value is not None and (point.number or name != "seconds"):
            label, unit, meaning = SHOWN[name]
            rows.append(
                f'<div title="{escape(meaning)}"><dt>{label}</dt>'
                f"<dd>{format_number(name, value)} {unit}</dd></div>"
            )
    return f'<dl class="numbers">{"".join(rows)}</dl>'


def format_number(name: str, value: float | None) -> str:
    """A number as text, with the digits and sign that the page uses."""
    if value is None:
        return "–"
    sign = "+" if name.endswith("_db") else ""
    return f"{value:{sign}.{DIGITS.get(name, 2)}f}".replace("-", "−")


# --- the table and the explanations ---------------------------------------------------------------


def _table(report: Report) -> str:
    numbers = [n for n in SHOWN if any(p.number_of(n) is not None for p in report.result.points)]
    head = [_head("point", "", "")]
    head += [_head(path, "", "", text=True) for path in report.paths]
    head += [_head(*SHOWN[name]) for name in numbers]
    head.append(_head("", "", "", text=True))
    rows = [_row(report, point, numbers) for point in report.result.points]
    return (
        f'<table id="points"><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _head(label: str, unit: str, meaning: str, *, text: bool = False) -> str:
    kind = ' class="text"' if text else ""
    said = f"{escape(label)}{f', {unit}' if unit else ''}"
    button = f'<button type="button">{said}</button>' if said else ""
    return f'<th scope="col"{kind} title="{escape(meaning)}">{button}</th>'


def _row(report: Report, point: PointResult, numbers: Sequence[str]) -> str:
    cells = [f'<td data-value="{point.number}"><a href="#p{point.number}">{point.number}</a></td>']
    for path in report.paths:
        value = escape(point.settings.get(path, ""))
        cells.append(f'<td class="text" data-value="{value}">{value}</td>')
    for name in numbers:
        found = point.number_of(name)
        value = "" if found is None else f"{found:.9g}"
        cells.append(f'<td data-value="{value}">{format_number(name, found)}</td>')
    said, tone = _badge(point, report.choice)
    said = f"failed: {point.error}" if point.error else said
    kind = f"text {'wide bad' if tone == 'bad' else ''}"
    cells.append(f'<td class="{kind}" data-value="{escape(said)}">{escape(said)}</td>')
    chosen = ' class="chosen"' if point.number == report.choice.point else ""
    return f'<tr{chosen} data-point="{point.number}">{"".join(cells)}</tr>'


def _explanations(report: Report) -> str:
    rows = "".join(
        f"<dt>{escape(label)}{f', {unit}' if unit else ''}</dt><dd>{escape(meaning)}</dd>"
        for label, unit, meaning in SHOWN.values()
    )
    least = report.choice.least_kept
    kept = "" if least is None else f" (here {least:.2f})"
    return (
        f'<dl class="words">{rows}</dl><p>Every point is measured against its upsampled draft '
        "before refining. The recommended point has the most detail of those that keep at least "
        f"90 % of the highest <i>motion kept</i> of the sweep{kept}, are at most 0.1 less similar "
        "to the draft than the most similar one, and flicker at most 1.5 times as much as the "
        f"draft. Differences of detail below {report.choice.noise_db:.2f} dB are ignored: that is "
        "twice the standard error between seeds if seeds were swept, else a fixed guess. Noise and "
        "artefacts count as detail too, so look at the clips as well.</p>"
    )
