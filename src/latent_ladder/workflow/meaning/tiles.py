"""The tilings of ComfyUI's decoding nodes, frame by frame: each node's own tiles and ramps.

Every tiling is a product of axes, and each axis' weights are divided by their sum, so the weights
of all tiles sum to 1 at every pixel, as the nodes get by dividing at the end. All tiles of a span
of time are decoded side by side, so that memory is that of a few frames, not of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_ladder.models.video_vae import VideoVae, decode_bands
from latent_ladder.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, pixel_frames


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
    """``LTXVTiledVAEDecode``: so many tiles, ramps from 0 to 1 where there is a neighbour."""
    frames, height, width = grid
    return Tiling(
        _one(frames, pixel_frames(frames)),
        _even_side(height, rows, overlap),
        _even_side(width, cols, overlap),
    )


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
    size = (length + (count - 1) * overlap) // count
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


# --- decoding -----------------------------------------------------------------------------------


def bands(latents: Tensor, vae: VideoVae, tiling: Tiling) -> Iterator[Tensor]:
    """Normalised latents (1, C, F, H, W) -> (3, n, H', W') float32, about -1..1, in order.

    A band may be overwritten once the next one is asked for.
    """
    if tiling.is_whole:
        yield from decode_bands(latents, vae)
        return
    held: Tensor | None = None
    for i, piece in enumerate(tiling.frames):
        after = tiling.frames[i + 1].first if i + 1 < len(tiling.frames) else None
        at, waiting = piece.first, []
        for band in _span(latents, vae, tiling, piece):
            band = _weighted(band, piece.weights[at - piece.first :])
            held, band = _added(held, band)
            final = len(band[0]) if after is None else max(min(after - at, len(band[0])), 0)
            at += len(band[0])
            if final:
                yield band[:, :final]
            if final < len(band[0]):
                waiting.append(band[:, final:].clone())
        held = torch.cat(waiting, dim=1) if waiting else None


def _weighted(band: Tensor, weights: Sequence[float]) -> Tensor:
    part = weights[: band.shape[1]]
    if all(w == 1.0 for w in part):
        return band
    return band * torch.tensor(part, dtype=torch.float32, device=band.device)[:, None, None]


def _added(held: Tensor | None, band: Tensor) -> tuple[Tensor | None, Tensor]:
    """The band with the frames that an earlier span left open, and what is still open of them."""
    if held is None:
        return None, band
    n = min(held.shape[1], band.shape[1])
    band[:, :n] += held[:, :n]
    rest = held[:, n:]
    return (rest if rest.shape[1] else None), band


def _span(latents: Tensor, vae: VideoVae, tiling: Tiling, piece: Piece) -> Iterator[Tensor]:
    """All tiles of one span of time, blended, in bands of as many frames as all have ready."""
    part = latents[:, :, piece.start : piece.stop]
    places = [(row, col) for row in tiling.rows for col in tiling.cols]
    streams = [
        _Ahead(decode_bands(part[..., row.start : row.stop, col.start : col.stop], vae))
        for row, col in places
    ]
    skip = piece.drop
    height, width = (axis[-1].first + len(axis[-1].weights) for axis in (tiling.rows, tiling.cols))
    while count := min(stream.ready() for stream in streams):
        band = torch.zeros((3, count, height, width), device=vae.device)
        for (row, col), stream in zip(places, streams, strict=True):
            frames = stream.take(count)
            weight = _ramp(row, vae)[:, None] * _ramp(col, vae)
            band[
                ...,
                row.first : row.first + len(row.weights),
                col.first : col.first + len(col.weights),
            ].addcmul_(frames, weight)
        if skip:
            band, skip = band[:, min(skip, count) :], max(skip - count, 0)
        if band.shape[1]:
            yield band


def _ramp(piece: Piece, vae: VideoVae) -> Tensor:
    return torch.tensor(piece.weights, dtype=torch.float32, device=vae.device)


class _Ahead:
    """A stream of bands that says how many frames it has ready, at least one until its end."""

    def __init__(self, source: Iterator[Tensor]) -> None:
        self._source = source
        self._frames: Tensor | None = None

    def ready(self) -> int:
        """Frames that can be taken now; 0 at the end."""
        if self._frames is None or not self._frames.shape[1]:
            following = next(self._source, None)
            self._frames = None if following is None else following.clone()
        return 0 if self._frames is None else self._frames.shape[1]

    def take(self, count: int) -> Tensor:
        """The next ``count`` frames (3, count, H, W)."""
        if self._frames is None:
            raise ValueError("no frames are ready")
        taken, self._frames = self._frames[:, :count], self._frames[:, count:]
        return taken


MakeTiling = Callable[[Sequence[int]], Tiling]
