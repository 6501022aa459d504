"""Tiles of a latent video, decoded and blended into bands of frames.

One loop for both orders of :data:`latent_ladder.latents.tiling.TileOrder`. Sequential tiles need
one decoder cache and a band of all frames of a span of time; parallel ones need a cache per tile
and a band of one chunk, so that memory is that of a few frames, not of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from latent_ladder.latents.tiling import DecodedSpan, Tiling

Decoder = Callable[[DecodedSpan, DecodedSpan, DecodedSpan], Iterator[Tensor]]
"""Function that decodes the tile of three spans (frames, rows, columns) in chunks (3, n, h, w)."""


def blend_tiles(tiling: Tiling, decode: Decoder, device: torch.device) -> Iterator[Tensor]:
    """Decode and blend the tiles to bands (3, n, H', W') float32 on ``device``, in order.

    Frames are yielded as soon as no later span of time overlaps them. A band may be overwritten
    once the next one is requested.
    """
    bands_of = _sequential_bands if tiling.order == "sequential" else _parallel_bands
    pending: Tensor | None = None  # weighted frames of earlier spans that later spans overlap
    for i, span in enumerate(tiling.frames):
        following = tiling.frames[i + 1].first if i + 1 < len(tiling.frames) else None
        at, waiting = span.first, []
        for band in bands_of(tiling, span, decode, device):
            _weight_frames(band, span.weights[at - span.first :])
            pending = _add_pending(pending, band)
            count = band.shape[1]
            final = count if following is None else max(min(following - at, count), 0)
            at += count
            if final:
                yield band[:, :final]
            if final < count:
                waiting.append(band[:, final:].clone())
        pending = (
            None if not waiting else waiting[0] if len(waiting) == 1 else torch.cat(waiting, 1)
        )


def _weight_frames(band: Tensor, weights: Sequence[float]) -> None:
    """Multiply the frames of a band (3, n, H, W) by the first of the weights, in place."""
    part = weights[: band.shape[1]]
    if any(weight != 1.0 for weight in part):
        band.mul_(torch.tensor(part, dtype=torch.float32, device=band.device)[:, None, None])


def _add_pending(pending: Tensor | None, band: Tensor) -> Tensor | None:
    """Add pending frames to a band that starts with them; returns those beyond the band."""
    if pending is None:
        return None
    n = min(pending.shape[1], band.shape[1])
    band[:, :n] += pending[:, :n]
    return pending[:, n:] if n < pending.shape[1] else None


def _sequential_bands(
    tiling: Tiling, span: DecodedSpan, decode: Decoder, device: torch.device
) -> Iterator[Tensor]:
    """One band of all frames of a span of time; its tiles are decoded one after the other."""
    band = torch.zeros((3, len(span.weights), *tiling.size), device=device)
    for row, col in _tiles(tiling):
        weight = _pixel_weights(row, device)[:, None] * _pixel_weights(col, device)
        tile, at = _tile_of(band, row, col), -span.drop
        for frames in decode(span, row, col):
            visible = frames[:, max(-at, 0) :]
            first, at = max(at, 0), at + frames.shape[1]
            if visible.shape[1]:
                tile[:, first:at].addcmul_(visible, weight)
    yield band


def _parallel_bands(
    tiling: Tiling, span: DecodedSpan, decode: Decoder, device: torch.device
) -> Iterator[Tensor]:
    """Bands of a span of time, each of as many frames as all its tiles have ready."""
    streams = [(row, col, _FrameStream(decode(span, row, col))) for row, col in _tiles(tiling)]
    drop = span.drop
    while count := min(stream.ready() for _, _, stream in streams):
        band = torch.zeros((3, count, *tiling.size), device=device)
        for row, col, stream in streams:
            weight = _pixel_weights(row, device)[:, None] * _pixel_weights(col, device)
            _tile_of(band, row, col).addcmul_(stream.take(count), weight)
        if drop:
            band, drop = band[:, min(drop, count) :], max(drop - count, 0)
        if band.shape[1]:
            yield band


def _tiles(tiling: Tiling) -> list[tuple[DecodedSpan, DecodedSpan]]:
    return [(row, col) for row in tiling.rows for col in tiling.cols]


def part_of(latents: Tensor, span: DecodedSpan, row: DecodedSpan, col: DecodedSpan) -> Tensor:
    """The part of latents (1, C, F, H, W) that three spans cover."""
    return latents[:, :, span.start : span.stop, row.start : row.stop, col.start : col.stop]


def _tile_of(band: Tensor, row: DecodedSpan, col: DecodedSpan) -> Tensor:
    rows = slice(row.first, row.first + len(row.weights))
    return band[..., rows, col.first : col.first + len(col.weights)]


def _pixel_weights(span: DecodedSpan, device: torch.device) -> Tensor:
    return torch.tensor(span.weights, dtype=torch.float32, device=device)


class _FrameStream:
    """Frames of one tile; knows how many can be taken now, at least one until its end."""

    def __init__(self, source: Iterator[Tensor]) -> None:
        self._source = source
        self._frames: Tensor | None = None

    def ready(self) -> int:
        """Number of frames that can be taken now; 0 at the end."""
        if self._frames is None or not self._frames.shape[1]:
            following = next(self._source, None)
            self._frames = None if following is None else following.clone()
        return 0 if self._frames is None else self._frames.shape[1]

    def take(self, count: int) -> Tensor:
        """The next ``count`` frames (3, count, H, W)."""
        if self._frames is None:
            raise ValueError("no frames are ready")
        frames, self._frames = self._frames[:, :count], self._frames[:, count:]
        return frames
