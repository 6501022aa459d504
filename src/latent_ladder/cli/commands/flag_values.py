"""Parsers for the values of options, such as ``1280x720`` or ``photo.png:last:0.8``.

A value that is not a number stays text where the request reports it with a hint of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_ladder.errors import RequestError

MAX_IMPLIED_LENGTH_S = 300
"""Longest clip in seconds that takes its length from an input file without ``--duration``."""

_IMAGE = re.compile(r"(?P<file>.+?):(?P<frame>-?\d+|first|last)(?::(?P<strength>\d*\.?\d+))?")
_FRAMES = {"first": 0, "last": -1}


def parse_number(text: str | None) -> int | float | str | None:
    """The number in ``text``; ``text`` itself if it is none."""
    if text is None:
        return None
    for number_type in (int, float):
        try:
            return number_type(text)
        except ValueError:
            continue
    return text


def parse_size(text: str, option: str = "size", example: str = "1280x720") -> dict[str, Any]:
    """``WIDTHxHEIGHT`` as the fields ``width`` and ``height``. Raises :class:`RequestError`."""
    width, cross, height = text.lower().partition("x")
    if not cross:
        raise RequestError(f"{option}={text} is not WIDTHxHEIGHT", f"use --{option} {example}")
    return {"width": parse_number(width), "height": parse_number(height)}


def parse_image(text: str) -> dict[str, Any]:
    """``FILE``, ``FILE:FRAME`` or ``FILE:FRAME:STRENGTH`` as an entry of ``images``.

    An existing file whose whole name is ``text`` comes first.
    """
    match = None if Path(text).exists() else _IMAGE.fullmatch(text)
    if match is None:
        return {"file": text}
    frame = match["frame"]
    image = {
        "file": match["file"],
        "frame": _FRAMES[frame] if frame in _FRAMES else int(frame),
    }
    return image if match["strength"] is None else {**image, "strength": float(match["strength"])}


def parse_windows(text: str) -> str | dict[str, Any]:
    """The field ``windows`` for ``241``, ``241:24``, ``off`` or ``auto``."""
    if text in ("off", "auto"):
        return text
    frames, colon, overlap = text.partition(":")
    overlap_field = {"overlap_frames": parse_number(overlap)} if colon else {}
    return {"frames": parse_number(frames), **overlap_field}


def parse_region(text: str) -> list[float]:
    """``START-END`` in seconds as two numbers. Raises :class:`RequestError`."""
    start, dash, end = text.strip().removesuffix("s").partition("-")
    if not dash:
        raise RequestError(f"region={text} is not START-END", "use --region 1.5-3.0")
    return [parse_seconds(start), parse_seconds(end)]


def parse_seconds(text: str) -> float:
    """``2s`` or ``2.5`` as a number. Raises :class:`RequestError`."""
    try:
        return float(text.strip().removesuffix("s"))
    except ValueError:
        raise RequestError(f"{text!r} is not a number of seconds", "use 2s or 2.5") from None


def parse_duration(text: str | None) -> dict[str, Any]:
    """``5``, ``auto`` or ``auto:2-10`` as fields of a request. Raises :class:`RequestError`."""
    if text is None:
        return {}
    kind, colon, limits = text.strip().partition(":")
    if kind != "auto":
        return {"duration_s": parse_number(text)}
    if not colon:
        return {"auto_duration": {}}
    shortest, dash, longest = limits.partition("-")
    if not dash:
        raise RequestError(
            f"duration={text} has no shortest and longest length", "use --duration auto:2-10"
        )
    return {"auto_duration": {"min_s": parse_seconds(shortest), "max_s": parse_seconds(longest)}}


def frames_for_input(seconds: float, path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The field ``frames`` of a clip as long as an input file: the nearest 8k+1 to ``seconds``.

    ``fields`` is the request so far. Raises :class:`RequestError` for a very long file.
    """
    from latent_ladder.latents import shapes

    if seconds > MAX_IMPLIED_LENGTH_S:
        raise RequestError(
            f"{path.name} is {seconds:.1f} s long; without --duration a clip is at most "
            f"{MAX_IMPLIED_LENGTH_S} s long",
            f"set the length: --duration {MAX_IMPLIED_LENGTH_S} takes the beginning of the file",
        )
    stages = fields.get("stages", ())
    doublings = sum(s.get("axis") == "temporal" for s in stages if isinstance(s, dict))
    fps = shapes.parse_fps(fields.get("fps", 24))
    return {"frames": shapes.frames_for(seconds, fps, 2**doublings)}
