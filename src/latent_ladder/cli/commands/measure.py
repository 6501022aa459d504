"""``ladder measure``: numbers for a clip, and for a refined clip against its draft."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.commands.flags import Json
from latent_ladder.cli.console import show_note, show_warning, table

if TYPE_CHECKING:
    from latent_ladder.metrics.measure import ClipMetrics, ComparisonMetrics

ONE: tuple[tuple[str, str, str], ...] = (
    ("motion", "%/s", "mean speed of the picture, in frame diagonals; 0 is a still"),
    ("dynamic_degree", "%/s", "speed of the fastest twentieth of the picture"),
    ("dynamic_share", "", "share of frames that VBench's rule calls dynamic"),
    ("detail", "levels", "strength of the finest detail, at the clip's own size"),
    ("flicker", "levels", "trembling of brightness that motion does not explain"),
    ("warping_error", "levels", "change from frame to frame that motion does not explain"),
    ("seam_energy", "", "edges on the lines of a tile grid; 0 none, 1 twice the neighbours"),
    ("last_second_flash", "levels", "jump of brightness in the last second"),
    ("freeze", "", "share of frames that repeat the one before"),
    ("freeze_longest_s", "s", "longest standstill"),
    ("color_drift", "dE", "mean colour, first against last second; 2 can just be seen"),
    ("clipped_blacks", "", "share of pixels without any light"),
    ("clipped_whites", "", "share of pixels burnt out"),
    ("brightness", "levels", "mean luminance, 0 to 255"),
)
SOUND: tuple[tuple[str, str, str], ...] = (
    ("level_db", "dBFS", "RMS level"),
    ("loudness_lufs", "LUFS", "loudness as broadcasters measure it"),
    ("peak_db", "dBFS", "largest sample"),
    ("clipping", "", "share of samples at full scale"),
    ("silence", "", "share of the time below -60 dBFS"),
    ("onset_lag_s", "s", "sound after motion (+) or before it (-), a guess"),
    ("onset_correlation", "", "how well sound and motion fit at that lag; below 0.3 tells nothing"),
)
TWO: tuple[tuple[str, str, str], ...] = (
    ("motion_kept", "", "1: both move alike; 0: nothing in common"),
    ("motion_error_px", "px", "how far the motions differ, per frame, at the draft's size"),
    ("motion_error", "%/s", "the same in frame diagonals per second"),
    ("structure_similarity", "", "SSIM at the draft's size; 1: the same picture"),
    ("detail_added_db", "dB", "fine detail beyond the enlarged draft; 0: none added"),
    ("color_drift", "dE", "difference of mean colour; 2 can just be seen"),
    ("spectral_distance", "dB", "difference of the sounds' spectra; 0: the same"),
)


def register(app: typer.Typer) -> None:
    """Add ``measure``."""
    app.command()(measure)


def measure(
    clip: Annotated[Path, typer.Argument(help="A video; with a second one, the draft.")],
    refined: Annotated[
        Path | None, typer.Argument(help="The refined clip, compared with the first.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a clip, or what a refined clip keeps of its draft and adds to it."""
    from latent_ladder.metrics.measure import compare_files, measure_file

    paths = [clip] if refined is None else [clip, refined]
    clips = [measure_file(path) for path in paths]
    compared = None if refined is None else compare_files(clip, refined)
    if as_json:
        print(json.dumps(_body(paths, clips, compared), indent=2, ensure_ascii=False))
        return
    _print_clips(paths, clips)
    if compared is not None:
        rows = [_row(row, [compared.to_dict()]) for row in TWO]
        table("second against first", ("measure", "value", "unit", "meaning"), rows)
        for note in compared.notes:
            show_note(f"note: {note}")


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """The measures of one clip as a run's record keeps them."""
    columns = ("measure", "value", "unit", "meaning")
    table("", columns, [_row(row, [metrics]) for row in ONE])
    if metrics.get("sound"):
        table("sound", columns, [_row(row, [metrics["sound"]]) for row in SOUND])


def _body(
    paths: list[Path], clips: list[ClipMetrics], compared: ComparisonMetrics | None
) -> dict[str, Any]:
    rows = [
        {"file": str(path), **metrics.to_dict(), "warnings": list(metrics.warnings)}
        for path, metrics in zip(paths, clips, strict=True)
    ]
    return {"clips": rows, "comparison": None if compared is None else compared.to_dict()}


def _print_clips(paths: list[Path], clips: list[ClipMetrics]) -> None:
    columns = ("measure", *(path.name for path in paths), "unit", "meaning")
    table("", columns, [_row(row, [m.to_dict() for m in clips]) for row in ONE])
    sounds = [m.sound.to_dict() if m.sound else {} for m in clips]
    if any(sounds):
        table("sound", columns, [_row(row, sounds) for row in SOUND])
    for path, metrics in zip(paths, clips, strict=True):
        if metrics.sound is None:
            show_note(f"{path.name} has no sound")
        for text in metrics.warnings:
            show_warning(f"{path.name}: {text}")


def _row(row: tuple[str, str, str], values: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    name, unit, meaning = row
    return (name, *(_shown(found.get(name)) for found in values), unit, meaning)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
