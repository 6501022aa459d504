"""Last line of a command that made something: its file, its size, its seed, the time it took."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Result

SEPARATOR = " · "


def join_facts(facts: Iterable[str]) -> str:
    """Facts on one line: ``star.mp4 · 512x512 · 1.0 s · seed 48213 · 11 s``."""
    return SEPARATOR.join(facts)


def clip_lines(result: Result, seconds: float) -> list[str]:
    """The pictures of a clip, one a line, and last the line of the clip.

    ``seconds`` is how long the command took.
    """
    return [*(f"also {path}" for path in result.pictures), _clip_line(result, seconds)]


def _clip_line(result: Result, seconds: float) -> str:
    width, height = result.request.resolved.final_size
    size = [] if result.output.suffix.lower() == ".wav" else [f"{width}x{height}"]
    facts = [
        str(result.output),
        *size,
        f"{result.duration_s:.1f} s",
        f"seed {result.request.seed}",
        format_time(seconds),
    ]
    return join_facts(facts)


def format_time(seconds: float) -> str:
    """A time for people: ``0.8 s``, ``11 s``, ``2 min 5 s``, ``1 h 4 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if not minutes:
        return f"{left} s"
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def folder_lines(path: Path, facts: Iterable[str], seconds: float, also: Iterable[Path]) -> str:
    """The same for a sheet or report: further files, then its line."""
    lines = [f"also {other}" for other in also]
    return "\n".join([*lines, join_facts([str(path), *facts, format_time(seconds)])])
