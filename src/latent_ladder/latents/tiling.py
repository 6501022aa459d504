"""Overlapping tiles over a latent video, and the linear ramps that blend them: pure numbers.

A tile is a product of three spans, one per axis. Where tiles overlap, each is weighted by a
linear ramp, and the weights of all tiles sum to 1 at every pixel, so blending needs no division.

Time is causal: the first latent frame of whatever is decoded becomes one pixel frame, each later
one ``scale`` (8). A span that does not start at the clip's beginning therefore starts one latent
frame earlier, and its first decoded pixel frame, which is of the wrong kind, gets weight 0
(ltx_core ``tiled_decode``; golden ``vae.decode_tiled``). Knows no network and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Span:
    """Latents ``start <= i < stop`` of one axis, ramping over the first ``left`` and the last
    ``right`` of them (0: no neighbour on that side)."""

    start: int
    stop: int
    left: int = 0
    right: int = 0

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TileSize:
    """Size and overlap of tiles, in latents."""

    frames: int
    rows: int
    cols: int
    overlap_frames: int = 3
    overlap: int = 2


@dataclass(frozen=True)
class TilePlan:
    """The spans of each axis; tiles are their product, time outermost."""

    frames: tuple[Span, ...]
    rows: tuple[Span, ...]
    cols: tuple[Span, ...]

    @property
    def count(self) -> int:
        """How many tiles."""
        return len(self.frames) * len(self.rows) * len(self.cols)

    @property
    def grid(self) -> tuple[int, int, int]:
        """The latent frames, rows and columns that the plan covers."""
        return (self.frames[-1].stop, self.rows[-1].stop, self.cols[-1].stop)

    @property
    def work(self) -> float:
        """Latents decoded per latent of the video, 1 without overlap."""
        axes = (self.frames, self.rows, self.cols)
        return math.prod(sum(map(len, axis)) / axis[-1].stop for axis in axes)

    @property
    def largest(self) -> tuple[int, int, int]:
        """The largest extent of a tile along each axis."""
        axes = (self.frames, self.rows, self.cols)
        frames, rows, cols = (max(map(len, axis)) for axis in axes)
        return (frames, rows, cols)


# --- plans --------------------------------------------------------------------------------------


def one_tile(frames: int, rows: int, cols: int) -> TilePlan:
    """The plan that decodes everything at once."""
    return TilePlan((Span(0, frames),), (Span(0, rows),), (Span(0, cols),))


def plan_tiles(frames: int, rows: int, cols: int, size: TileSize) -> TilePlan:
    """Cover a latent video with tiles of at most ``size`` (a later span in time has one more
    frame, the dropped one). An axis that fits into one tile is not split."""
    return TilePlan(
        temporal_spans(frames, size.frames, size.overlap_frames),
        spatial_spans(rows, size.rows, size.overlap),
        spatial_spans(cols, size.cols, size.overlap),
    )


def spatial_spans(length: int, size: int, overlap: int) -> tuple[Span, ...]:
    """Spans of ``size`` every ``size - overlap``; the last one ends at ``length``."""
    if length <= size:
        return (Span(0, length),)
    overlap = min(overlap, size - 1)
    step = size - overlap
    count = math.ceil((length - overlap) / step)
    return tuple(
        Span(
            start=i * step,
            stop=min(i * step + size, length),
            left=overlap if i else 0,
            right=overlap if i < count - 1 else 0,
        )
        for i in range(count)
    )


def even_spans(length: int, size: int, overlap: int) -> tuple[Span, ...]:
    """As few spans of at most ``size`` as :func:`spatial_spans` has, but of about equal length."""
    if length <= size:
        return (Span(0, length),)
    overlap = min(overlap, size - 1)
    count = math.ceil((length - overlap) / (size - overlap))
    return spatial_spans(length, math.ceil((length + (count - 1) * overlap) / count), overlap)


def temporal_spans(length: int, size: int, overlap: int) -> tuple[Span, ...]:
    """As :func:`spatial_spans`, each span after the first starting one latent earlier."""
    first, *later = spatial_spans(length, size, max(overlap, 1))
    return (first, *(replace(s, start=s.start - 1, left=s.left + 1) for s in later))


def official_size(rows: int, cols: int) -> TileSize:
    """The reference implementation's automatic tiles: 24 latents (768 px) on the long side, the
    other in proportion; 10 latent frames (80), 3 in common; 2 latents (64 px) of overlap."""
    long_side = 24
    short = max(round(min(rows, cols) * long_side / max(rows, cols)), 3)
    tall = rows >= cols
    return TileSize(10, long_side if tall else short, short if tall else long_side)


# --- ramps --------------------------------------------------------------------------------------


def spatial_weights(spans: Sequence[Span], scale: int | Fraction) -> tuple[Weights, ...]:
    """The weight of every pixel of every span; at each pixel they sum to 1 over the spans.

    With a fractional ``scale`` spans must start, and ramps end, at whole pixels.
    """
    starts = [int(s.start * scale) for s in spans]
    raw = [
        _trapezoid(
            math.ceil(s.stop * scale) - start,
            _rising(int(s.left * scale)),
            _rising(int(s.right * scale)),
        )
        for s, start in zip(spans, starts, strict=True)
    ]
    return _normalised(raw, starts)


def temporal_weights(spans: Sequence[Span], scale: int) -> tuple[Weights, ...]:
    """The weight of every decoded frame of every span, 0 for the first frame of later spans."""
    raw = []
    for span in spans:
        frames = 1 + (len(span) - 1) * scale
        ramp = (span.left - 1) * scale + 1
        rising = tuple(i / ramp for i in range(ramp)) if span.left else ()
        raw.append(_trapezoid(frames, rising, _rising(span.right * scale)))
    return _normalised(raw, [frame_start(s, scale) for s in spans])


def frame_start(span: Span, scale: int) -> int:
    """The pixel frame at which the first decoded frame of a span lies."""
    return span.start * scale


def _rising(n: int) -> Weights:
    """``n`` values strictly between 0 and 1."""
    return tuple((i + 1) / (n + 1) for i in range(n))


def _trapezoid(n: int, rising: Weights, falling: Weights) -> list[float]:
    weights = [1.0] * n
    for i, value in enumerate(rising):
        weights[i] *= value
    for i, value in enumerate(falling):
        weights[n - 1 - i] *= value
    return weights


def _normalised(raw: Sequence[Sequence[float]], starts: Sequence[int]) -> tuple[Weights, ...]:
    """Divide by the sum, which differs from 1 only where three spans or more overlap."""
    total = [0.0] * max(start + len(w) for start, w in zip(starts, raw, strict=True))
    for start, weights in zip(starts, raw, strict=True):
        for i, weight in enumerate(weights):
            total[start + i] += weight
    return tuple(
        tuple(weight / total[start + i] for i, weight in enumerate(weights))
        for start, weights in zip(starts, raw, strict=True)
    )
