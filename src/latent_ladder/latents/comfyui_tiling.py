"""Tiles side by side, frame by frame: the pieces of each axis and what each pixel of them counts.

The tilings of ComfyUI's decoding nodes, with each node's own tiles and ramps; a request's ``grid``
is one of them. Every tiling is a product of axes, and each axis' weights are divided by their sum,
so the weights of all tiles sum to 1 at every pixel, as the nodes get by dividing at the end.
:mod:`latent_ladder.models.video_vae.tiled_decode` carries them out. Pure numbers, no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, pixel_frames


@dataclass(frozen=True)
class Piece:
    """Latents ``start <= i < stop`` of an axis, and where and how they count once decoded.

    ``drop`` decoded frames are left out at the front; the others begin at ``first`` and have one of
    ``weights`` each.
    """

    start: int
    stop: int
    first: int
    weights: tuple[float, ...]
    drop: int = 0


@dataclass(frozen=True)
class Tiling:
    """The pieces of each axis."""

    frames: tuple[Piece, ...]
    rows: tuple[Piece, ...]
    cols: tuple[Piece, ...]

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing to blend."""
        return len(self.frames) == len(self.rows) == len(self.cols) == 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """The latent frames, rows and columns that the tiling covers."""
        return (self.frames[-1].stop, self.rows[-1].stop, self.cols[-1].stop)

    @property
    def area(self) -> int:
        """Latents of all tiles of one latent frame together, what they share counted each time."""
        rows, cols = (sum(p.stop - p.start for p in axis) for axis in (self.rows, self.cols))
        return rows * cols


# --- the nodes' tilings -------------------------------------------------------------------------


def whole(grid: Sequence[int]) -> Tiling:
    """One tile."""
    frames, rows, cols = grid
    return Tiling(_one(frames, pixel_frames(frames)), _one_side(rows), _one_side(cols))


def feathered(grid: Sequence[int], tile: tuple[int, int], overlap: tuple[int, int]) -> Tiling:
    """``VAEDecodeTiled``: (frames, side) of tiles and of their overlap, in latents.

    Both ends of every tile, at the border too, ramp by (i + 1) / n. A later span of time is decoded
    as if the clip began there, its lone first frame included: that is what makes it flicker.
    """
    frames, rows, cols = grid
    feather = max(0, overlap[0] * FRAMES_PER_LATENT - 7)
    starts = _feather_starts(frames, tile[0], overlap[0])
    spans = [(s, min(s + tile[0], frames)) for s in starts]
    raw = [_feather(pixel_frames(stop - start), feather) for start, stop in spans]
    places = [start * FRAMES_PER_LATENT for start, _ in spans]
    time = tuple(
        Piece(start, stop, first, weights)
        for (start, stop), first, weights in zip(spans, places, _shared(raw, places), strict=True)
    )
    return Tiling(
        time, _feathered_side(rows, tile[1], overlap[1]), _feathered_side(cols, tile[1], overlap[1])
    )


def even(grid: Sequence[int], rows: int, cols: int, overlap: int) -> Tiling:
    """``LTXVTiledVAEDecode``: so many tiles, ramps from 0 to 1 where there is a neighbour.

    ``overlap`` is at most :func:`even_size` of a side that is split.
    """
    frames, height, width = grid
    return Tiling(
        _one(frames, pixel_frames(frames)),
        _even_side(height, rows, overlap),
        _even_side(width, cols, overlap),
    )


def even_size(length: int, count: int, overlap: int) -> int:
    """The size of each of ``count`` tiles of a side; the last one may be larger.

    Tiles smaller than their overlap would begin outside of the side.
    """
    return (length + (count - 1) * overlap) // count


def faded(grid: Sequence[int], tiling: Tiling, length: int, overlap: int) -> Tiling:
    """``LTXVSpatioTemporalTiledVAEDecode``: ``tiling`` in space, spans of ``length`` in time.

    A later span begins one latent before its overlap and drops its first decoded frame.
    """
    total = grid[0]
    spans: list[tuple[int, int, int]] = []
    done = 0
    while done < total:
        begin = max(1, done - overlap - 1) if done else 0
        stop = min(done + length - (done - begin), total)
        stop = max(stop, done + 1)
        spans.append((begin, stop, done))
        done = stop
    raw, places = [], []
    for i, (begin, stop, after) in enumerate(spans):
        count = pixel_frames(stop - begin) - (1 if i else 0)
        shared = (after - begin - 1) * FRAMES_PER_LATENT if i else 0
        weights = [1.0] * count
        for k in range(shared):
            weights[k] = (k + 1) / (shared + 1)
        if i + 1 < len(spans):
            later = (spans[i + 1][2] - spans[i + 1][0] - 1) * FRAMES_PER_LATENT
            for k in range(later):
                weights[count - 1 - k] *= (k + 1) / (later + 1)
        raw.append(weights)
        places.append(begin * FRAMES_PER_LATENT + (1 if i else 0))
    pieces = tuple(
        Piece(begin, stop, first, weights, 1 if i else 0)
        for i, ((begin, stop, _), first, weights) in enumerate(
            zip(spans, places, _shared(raw, places), strict=True)
        )
    )
    return Tiling(pieces, tiling.rows, tiling.cols)


def _one(length: int, decoded: int) -> tuple[Piece, ...]:
    return (Piece(0, length, 0, (1.0,) * decoded),)


def _one_side(length: int) -> tuple[Piece, ...]:
    return _one(length, length * PIXELS_PER_LATENT)


def _feather_starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    return [min(length - overlap, s) for s in range(0, length - overlap, tile - overlap)]


def _feather(count: int, ramp: int) -> list[float]:
    weights = [1.0] * count
    if ramp < count:
        for i in range(ramp):
            weights[i] *= (i + 1) / ramp
            weights[count - 1 - i] *= (i + 1) / ramp
    return weights


def _feathered_side(length: int, tile: int, overlap: int) -> tuple[Piece, ...]:
    spans = [(s, min(s + tile, length)) for s in _feather_starts(length, tile, overlap)]
    ramp = overlap * PIXELS_PER_LATENT
    raw = [_feather((stop - start) * PIXELS_PER_LATENT, ramp) for start, stop in spans]
    return _side(spans, raw)


def _even_side(length: int, count: int, overlap: int) -> tuple[Piece, ...]:
    if count == 1:
        return _one_side(length)
    size = even_size(length, count, overlap)
    starts = [i * (size - overlap) for i in range(count)]
    spans = [
        (start, length if i == count - 1 else min(start + size, length))
        for i, start in enumerate(starts)
    ]
    raw = []
    for i, (start, stop) in enumerate(spans):
        weights = [1.0] * ((stop - start) * PIXELS_PER_LATENT)
        ramp = min(overlap * PIXELS_PER_LATENT, len(weights))
        for k in range(ramp):
            share = k / (ramp - 1) if ramp > 1 else 0.0
            weights[k] *= share if i else 1.0
            weights[len(weights) - 1 - k] *= share if i < count - 1 else 1.0
        raw.append(weights)
    return _side(spans, raw)


def _side(spans: Sequence[tuple[int, int]], raw: Sequence[Sequence[float]]) -> tuple[Piece, ...]:
    places = [start * PIXELS_PER_LATENT for start, _ in spans]
    return tuple(
        Piece(start, stop, first, weights)
        for (start, stop), first, weights in zip(spans, places, _shared(raw, places), strict=True)
    )


def _shared(raw: Sequence[Sequence[float]], places: Sequence[int]) -> list[tuple[float, ...]]:
    """The weights divided by their sum over all pieces."""
    total = [0.0] * max(p + len(w) for p, w in zip(places, raw, strict=True))
    for place, weights in zip(places, raw, strict=True):
        for i, weight in enumerate(weights):
            total[place + i] += weight
    return [
        tuple(weight / (total[place + i] or 1.0) for i, weight in enumerate(weights))
        for place, weights in zip(places, raw, strict=True)
    ]
