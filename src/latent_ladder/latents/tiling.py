"""Overlapping tiles over a latent video, and the linear ramps that blend them: pure numbers.

A tile is a product of three spans, one per axis. Where tiles overlap, each is weighted by a linear
ramp, and the weights of all tiles sum to 1 at every pixel, so blending needs no division.

Time is causal: the first latent frame of a decoded span becomes one pixel frame, each later one
``scale`` (8). A span that does not start at the clip's beginning therefore starts one latent frame
earlier, and its first decoded frame, which stands for one frame only, has weight 0 (ltx_core
``tiled_decode``; golden ``vae.decode_tiled``). The tiles of ComfyUI's nodes are in
:mod:`latent_ladder.latents.comfyui_tiling`. Knows no network and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

Weights = tuple[float, ...]
TileOrder = Literal["sequential", "parallel"]
"""``sequential`` decodes the tiles of a span of time one after the other into a band of all its
frames: one decoder cache, a large band. ``parallel`` advances all tiles together, chunk by chunk:
one decoder cache per tile, a small band."""


@dataclass(frozen=True)
class Span:
    """Latents ``start <= i < stop`` of one axis.

    Its weights rise over the first ``left`` and fall over the last ``right`` of them (0: there is
    no neighbour on that side).
    """

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


DIFFUSION_OVERLAP_FRAMES, DIFFUSION_OVERLAP_PX = 40, 160
"""Overlaps of the official tiles of the diffusion decoder: what its blocks see to each side."""


@dataclass(frozen=True)
class PixelTileSize:
    """Size and overlap of the diffusion decoder's tiles, in frames and pixels.

    ``None``: the axis is not split.
    """

    frames: int | None = None
    rows: int | None = None
    cols: int | None = None
    overlap_frames: int = DIFFUSION_OVERLAP_FRAMES
    overlap: int = DIFFUSION_OVERLAP_PX


@dataclass(frozen=True)
class TilePlan:
    """The spans of each axis; tiles are their product, time outermost."""

    frames: tuple[Span, ...]
    rows: tuple[Span, ...]
    cols: tuple[Span, ...]

    @property
    def count(self) -> int:
        """Number of tiles."""
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

    def tiling(self, spatial_scale: int, temporal_scale: int) -> Tiling:
        """The plan with the weights of decoded pixels, for a decoder of these scales."""
        weights = temporal_weights(self.frames, temporal_scale)
        frames = []
        for span, ramp in zip(self.frames, weights, strict=True):
            drop = int(span.start > 0)
            first = frame_start(span, temporal_scale) + drop
            frames.append(DecodedSpan(span.start, span.stop, first, ramp[drop:], drop))
        rows, cols = (_decoded_side(axis, spatial_scale) for axis in (self.rows, self.cols))
        return Tiling(tuple(frames), rows, cols, "sequential")


def _decoded_side(spans: Sequence[Span], scale: int) -> tuple[DecodedSpan, ...]:
    return tuple(
        DecodedSpan(span.start, span.stop, span.start * scale, weights)
        for span, weights in zip(spans, spatial_weights(spans, scale), strict=True)
    )


@dataclass(frozen=True)
class DecodedSpan:
    """Latents ``start <= i < stop`` of an axis, with the position and weights of decoded pixels.

    ``drop`` decoded frames are left out at the front; the others begin at ``first`` and have one of
    ``weights`` each.
    """

    start: int
    stop: int
    first: int
    weights: Weights
    drop: int = 0


@dataclass(frozen=True)
class Tiling:
    """Tiles ready to be decoded and blended: the spans of each axis, and the order of decoding.

    The weights of an axis sum to 1 at every pixel.
    """

    frames: tuple[DecodedSpan, ...]
    rows: tuple[DecodedSpan, ...]
    cols: tuple[DecodedSpan, ...]
    order: TileOrder = "parallel"

    @property
    def is_whole(self) -> bool:
        """True for a single tile."""
        return len(self.frames) == len(self.rows) == len(self.cols) == 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """The latent frames, rows and columns that the tiling covers."""
        return (self.frames[-1].stop, self.rows[-1].stop, self.cols[-1].stop)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the decoded frames in pixels."""
        height, width = (axis[-1].first + len(axis[-1].weights) for axis in (self.rows, self.cols))
        return height, width

    @property
    def area(self) -> int:
        """Latents of all tiles of one latent frame, overlaps counted once per tile."""
        rows, cols = (sum(s.stop - s.start for s in axis) for axis in (self.rows, self.cols))
        return rows * cols


# --- plans --------------------------------------------------------------------------------------


def one_tile(frames: int, rows: int, cols: int) -> TilePlan:
    """The plan that decodes everything at once."""
    return TilePlan((Span(0, frames),), (Span(0, rows),), (Span(0, cols),))


def plan_tiles(frames: int, rows: int, cols: int, size: TileSize) -> TilePlan:
    """Cover a latent video with tiles of at most ``size``.

    A later span in time has one more frame, the dropped one. An axis that fits into one tile is not
    split.
    """
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


def spans_by_count(length: int, count: int, overlap: int) -> tuple[Span, ...]:
    """``count`` spans of :func:`even_tile_size`; the last one ends at ``length``."""
    size = even_tile_size(length, count, overlap)
    starts = [i * (size - overlap) for i in range(count)]
    stops = [min(start + size, length) for start in starts[:-1]] + [length]
    return tuple(
        Span(start, stop, overlap if i else 0, overlap if i < count - 1 else 0)
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
    )


def even_tile_size(length: int, count: int, overlap: int) -> int:
    """The size of each of ``count`` tiles of a side; the last one may be larger.

    Tiles smaller than their overlap would begin outside of the side.
    """
    return (length + (count - 1) * overlap) // count


def temporal_spans(length: int, size: int, overlap: int) -> tuple[Span, ...]:
    """As :func:`spatial_spans`, each span after the first starting one latent earlier."""
    first, *later = spatial_spans(length, size, max(overlap, 1))
    return (first, *(replace(s, start=s.start - 1, left=s.left + 1) for s in later))


def official_size(rows: int, cols: int) -> TileSize:
    """The automatic tiles of the reference implementation.

    24 latents (768 px) on the long side, the other in proportion; 10 latent frames (80 frames) with
    an overlap of 3; 2 latents (64 px) of overlap in space.
    """
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
        ramp_weights(
            math.ceil(s.stop * scale) - start,
            rising_ramp(int(s.left * scale)),
            rising_ramp(int(s.right * scale)),
        )
        for s, start in zip(spans, starts, strict=True)
    ]
    return normalise_weights(raw, starts)


def temporal_weights(spans: Sequence[Span], scale: int) -> tuple[Weights, ...]:
    """The weight of every decoded frame of every span, 0 for the first frame of later spans."""
    raw = []
    for span in spans:
        frames = 1 + (len(span) - 1) * scale
        ramp = (span.left - 1) * scale + 1
        rising = tuple(i / ramp for i in range(ramp)) if span.left else ()
        raw.append(ramp_weights(frames, rising, rising_ramp(span.right * scale)))
    return normalise_weights(raw, [frame_start(s, scale) for s in spans])


def frame_start(span: Span, scale: int) -> int:
    """The pixel frame at which the first decoded frame of a span lies."""
    return span.start * scale


def rising_ramp(n: int) -> Weights:
    """``n`` values strictly between 0 and 1."""
    return tuple((i + 1) / (n + 1) for i in range(n))


def ramp_weights(n: int, rising: Sequence[float], falling: Sequence[float]) -> list[float]:
    """``n`` weights of 1, times ``rising`` from the front and ``falling`` from the back."""
    weights = [1.0] * n
    for i, value in enumerate(rising):
        weights[i] *= value
    for i, value in enumerate(falling):
        weights[n - 1 - i] *= value
    return weights


def normalise_weights(raw: Sequence[Sequence[float]], starts: Sequence[int]) -> tuple[Weights, ...]:
    """The weights of spans that begin at ``starts``, divided by their sum at each pixel."""
    total = [0.0] * max(start + len(w) for start, w in zip(starts, raw, strict=True))
    for start, weights in zip(starts, raw, strict=True):
        for i, weight in enumerate(weights):
            total[start + i] += weight
    return tuple(
        tuple(weight / (total[start + i] or 1.0) for i, weight in enumerate(weights))
        for start, weights in zip(starts, raw, strict=True)
    )
