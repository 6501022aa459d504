"""The tilings of ComfyUI's decoding nodes, with each node's own tiles and ramps.

A request's ``grid`` is one of them. Each tiling is a product of axes, and the weights of an axis
are divided by their sum, so the weights of all tiles sum to 1 at every pixel, as the nodes achieve
by a division at the end. All tiles advance together (order ``parallel``). The arithmetic of spans
and ramps is that of :mod:`latent_ladder.latents.tiling`. Pure numbers, no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, pixel_frames
from latent_ladder.latents.tiling import (
    DecodedSpan,
    Span,
    Tiling,
    normalise_weights,
    ramp_weights,
    rising_ramp,
    spans_by_count,
)


def whole_tiling(grid: Sequence[int]) -> Tiling:
    """One tile over (frames, rows, columns) of latents."""
    frames, rows, cols = grid
    return Tiling(_one_span(frames, pixel_frames(frames)), _one_side(rows), _one_side(cols))


def feather_tiles(grid: Sequence[int], tile: tuple[int, int], overlap: tuple[int, int]) -> Tiling:
    """``VAEDecodeTiled``: (frames, side) of tiles and of their overlap, in latents.

    Both ends of every tile, also at the border, have a ramp of (i + 1) / n. A later span of time is
    decoded as if the clip began there, including its single first frame, so the result flickers.
    """
    frames, rows, cols = grid
    ramp = max(0, overlap[0] * FRAMES_PER_LATENT - 7)
    spans = _feathered_spans(frames, tile[0], overlap[0])
    raw = [_feather_weights(pixel_frames(len(span)), ramp) for span in spans]
    starts = [span.start * FRAMES_PER_LATENT for span in spans]
    return Tiling(
        _decode_spans(spans, starts, raw),
        _feathered_side(rows, tile[1], overlap[1]),
        _feathered_side(cols, tile[1], overlap[1]),
    )


def split_evenly(grid: Sequence[int], rows: int, cols: int, overlap: int) -> Tiling:
    """``LTXVTiledVAEDecode``: ``rows`` x ``cols`` tiles, ramps from 0 to 1 between neighbours.

    ``overlap`` is at most :func:`latent_ladder.latents.tiling.even_tile_size` of a side that is
    split.
    """
    frames, height, width = grid
    return Tiling(
        _one_span(frames, pixel_frames(frames)),
        _even_side(height, rows, overlap),
        _even_side(width, cols, overlap),
    )


def fade_spans(grid: Sequence[int], tiling: Tiling, length: int, overlap: int) -> Tiling:
    """``LTXVSpatioTemporalTiledVAEDecode``: ``tiling`` in space, spans of ``length`` in time.

    A later span begins one latent before its overlap and drops its first decoded frame.
    """
    total = grid[0]
    spans: list[Span] = []
    done = 0
    while done < total:
        begin = max(1, done - overlap - 1) if done else 0
        stop = max(min(begin + length, total), done + 1)
        shared = (done - begin - 1) * FRAMES_PER_LATENT if done else 0
        spans.append(Span(begin, stop, left=shared))
        done = stop
    raw, starts = [], []
    for i, span in enumerate(spans):
        drop, falling = int(i > 0), spans[i + 1].left if i + 1 < len(spans) else 0
        count = pixel_frames(len(span)) - drop
        raw.append(ramp_weights(count, rising_ramp(span.left), rising_ramp(falling)))
        starts.append(span.start * FRAMES_PER_LATENT + drop)
    return Tiling(_decode_spans(spans, starts, raw, drop=1), tiling.rows, tiling.cols)


def _decode_spans(
    spans: Sequence[Span], starts: Sequence[int], raw: Sequence[Sequence[float]], drop: int = 0
) -> tuple[DecodedSpan, ...]:
    """Spans whose pixels begin at ``starts``; all but the first drop ``drop`` frames."""
    return tuple(
        DecodedSpan(span.start, span.stop, start, weights, drop if i else 0)
        for i, (span, start, weights) in enumerate(
            zip(spans, starts, normalise_weights(raw, starts), strict=True)
        )
    )


def _decoded_side(spans: Sequence[Span], raw: Sequence[Sequence[float]]) -> tuple[DecodedSpan, ...]:
    return _decode_spans(spans, [span.start * PIXELS_PER_LATENT for span in spans], raw)


def _one_span(length: int, pixels: int) -> tuple[DecodedSpan, ...]:
    return (DecodedSpan(0, length, 0, (1.0,) * pixels),)


def _one_side(length: int) -> tuple[DecodedSpan, ...]:
    return _one_span(length, length * PIXELS_PER_LATENT)


def _feathered_spans(length: int, tile: int, overlap: int) -> list[Span]:
    if length <= tile:
        return [Span(0, length)]
    starts = [min(length - overlap, s) for s in range(0, length - overlap, tile - overlap)]
    return [Span(start, min(start + tile, length)) for start in starts]


def _feather_weights(count: int, length: int) -> list[float]:
    ramp = [(i + 1) / length for i in range(length)] if length < count else []
    return ramp_weights(count, ramp, ramp)


def _feathered_side(length: int, tile: int, overlap: int) -> tuple[DecodedSpan, ...]:
    spans, ramp = _feathered_spans(length, tile, overlap), overlap * PIXELS_PER_LATENT
    return _decoded_side(
        spans, [_feather_weights(len(span) * PIXELS_PER_LATENT, ramp) for span in spans]
    )


def _even_side(length: int, count: int, overlap: int) -> tuple[DecodedSpan, ...]:
    if count == 1:
        return _one_side(length)
    spans, raw = spans_by_count(length, count, overlap), []
    for span in spans:
        pixels = len(span) * PIXELS_PER_LATENT
        n = min(overlap * PIXELS_PER_LATENT, pixels)
        ramp = [k / (n - 1) if n > 1 else 0.0 for k in range(n)]
        raw.append(ramp_weights(pixels, ramp if span.left else (), ramp if span.right else ()))
    return _decoded_side(spans, raw)
