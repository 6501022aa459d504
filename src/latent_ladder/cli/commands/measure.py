"""``ladder measure``: numbers for a clip, or for a refined clip compared with its draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.options import Json
from latent_ladder.cli.console import print_json, print_table, show_loading, show_note, show_warning

if TYPE_CHECKING:
    from latent_ladder.metrics.measure import ClipMetrics, ComparisonMetrics

MetricRow = tuple[str, str, str]
"""Name of a metric, its unit, its meaning."""

CLIP_METRICS: tuple[MetricRow, ...] = (
    ("motion", "%/s", "mean speed of the picture, in frame diagonals; 0 is a still picture"),
    ("dynamic_degree", "%/s", "speed of the fastest 5 % of the picture"),
    ("dynamic_share", "", "share of frames that VBench's rule calls dynamic"),
    ("detail", "levels", "strength of the finest detail, at the clip's own size"),
    ("flicker", "levels", "changes of brightness that motion does not explain"),
    ("warping_error", "levels", "change from frame to frame that motion does not explain"),
    ("seam_energy", "", "edges along a grid of tiles; 0: none, 1: twice their surroundings"),
    ("last_second_flash", "levels", "jump of brightness in the last second"),
    ("freeze", "", "share of frames that repeat the frame before"),
    ("freeze_longest_s", "s", "longest time without any change"),
    ("color_drift", "dE", "change of mean colour, first to last second; 2 is just visible"),
    ("clipped_blacks", "", "share of pixels that are fully black"),
    ("clipped_whites", "", "share of pixels that are fully white"),
    ("brightness", "levels", "mean luminance, 0 to 255"),
)
SOUND_METRICS: tuple[MetricRow, ...] = (
    ("level_db", "dBFS", "RMS level"),
    ("loudness_lufs", "LUFS", "loudness by the broadcast standard BS.1770"),
    ("peak_db", "dBFS", "largest sample"),
    ("clipping", "", "share of samples at full scale"),
    ("silence", "", "share of the time below -60 dBFS"),
    ("onset_lag_s", "s", "delay of sound after motion (+) or before it (-), estimated"),
    ("onset_correlation", "", "agreement of sound and motion at that delay; below 0.3: no result"),
)
COMPARISON_METRICS: tuple[MetricRow, ...] = (
    ("motion_kept", "", "1: both clips move in the same way; 0: nothing in common"),
    ("motion_error_px", "px", "mean difference of motion per frame, at the draft's size"),
    ("motion_error", "%/s", "the same in frame diagonals per second"),
    ("structure_similarity", "", "SSIM at the draft's size; 1: the same picture"),
    ("detail_added_db", "dB", "fine detail beyond the enlarged draft; 0: none added"),
    ("color_drift", "dE", "difference of mean colour; 2 is just visible"),
    ("spectral_distance", "dB", "difference of the sound spectra; 0: the same"),
)
HEADER = ("measure", "value", "unit", "meaning")

Clip = Annotated[
    Path, typer.Argument(metavar="CLIP", help="Video to measure; the draft, if REFINED is given.")
]
Refined = Annotated[
    Path | None,
    typer.Argument(metavar="REFINED", help="Refined clip, to be compared with CLIP."),
]


def register(app: typer.Typer) -> None:
    """Add ``measure``."""
    app.command(cls=GroupedCommand)(expand_flags(measure))


def measure(clip: Clip, refined: Refined = None, as_json: Json = False) -> None:
    """Measure a clip, or compare a clip with its draft.

    Needs no model files and no GPU.
    """
    paths = [clip] if refined is None else [clip, refined]
    show_loading(f"measuring {' and '.join(path.name for path in paths)}", as_json)
    from latent_ladder.metrics.measure import compare_files, measure_file

    clips = [measure_file(path) for path in paths]
    compared = None if refined is None else compare_files(clip, refined)
    if as_json:
        print_json(_to_dict(paths, clips, compared))
        return
    _print_clips(paths, clips)
    if compared is not None:
        rows = [_table_row(row, [compared.to_dict()]) for row in COMPARISON_METRICS]
        print_table("second clip against the first", HEADER, rows)
        for note in compared.notes:
            show_note(f"note: {note}")


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the metrics of one clip as a run's record stores them."""
    print_table("", HEADER, [_table_row(row, [metrics]) for row in CLIP_METRICS])
    if metrics.get("sound"):
        rows = [_table_row(row, [metrics["sound"]]) for row in SOUND_METRICS]
        print_table("sound", HEADER, rows)


def _to_dict(
    paths: list[Path], clips: list[ClipMetrics], compared: ComparisonMetrics | None
) -> dict[str, Any]:
    rows = [
        {"file": str(path), **metrics.to_dict(), "warnings": list(metrics.warnings)}
        for path, metrics in zip(paths, clips, strict=True)
    ]
    return {"clips": rows, "comparison": None if compared is None else compared.to_dict()}


def _print_clips(paths: list[Path], clips: list[ClipMetrics]) -> None:
    columns = ("measure", *(path.name for path in paths), "unit", "meaning")
    values = [m.to_dict() for m in clips]
    print_table("", columns, [_table_row(row, values) for row in CLIP_METRICS])
    sounds = [m.sound.to_dict() if m.sound else {} for m in clips]
    if any(sounds):
        print_table("sound", columns, [_table_row(row, sounds) for row in SOUND_METRICS])
    for path, metrics in zip(paths, clips, strict=True):
        if metrics.sound is None:
            show_note(f"{path.name} has no sound")
        for text in metrics.warnings:
            show_warning(f"{path.name}: {text}")


def _table_row(row: MetricRow, values: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    name, unit, meaning = row
    return (name, *(_format_value(metrics.get(name)) for metrics in values), unit, meaning)


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
