"""Tiles decoded side by side and blended frame by frame.

All tiles of a span of time advance together, so that memory is that of a few frames, not of the
clip: each tile keeps what its decoder holds between chunks, and one chunk of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from latent_ladder.latents.comfyui_tiling import Piece, Tiling

Decoder = Callable[[Tensor], Iterator[Tensor]]


def blended(
    latents: Tensor, tiling: Tiling, decode: Decoder, device: torch.device
) -> Iterator[Tensor]:
    """Latents (1, C, F, H, W) -> (3, n, H', W') float32 on ``device``, in order.

    ``decode`` gives the frames of any part of the latents in chunks of the same form; where a part
    is in time, it is decoded as if the clip began there. A band may be overwritten once the next
    one is asked for.
    """
    held: Tensor | None = None
    for i, piece in enumerate(tiling.frames):
        after = tiling.frames[i + 1].first if i + 1 < len(tiling.frames) else None
        at, waiting = piece.first, []
        for band in _span(latents, tiling, piece, decode, device):
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


def _span(
    latents: Tensor, tiling: Tiling, piece: Piece, decode: Decoder, device: torch.device
) -> Iterator[Tensor]:
    """All tiles of one span of time, blended, in bands of as many frames as all have ready."""
    part = latents[:, :, piece.start : piece.stop]
    places = [(row, col) for row in tiling.rows for col in tiling.cols]
    streams = [
        _Ahead(decode(part[..., row.start : row.stop, col.start : col.stop])) for row, col in places
    ]
    skip = piece.drop
    height, width = (axis[-1].first + len(axis[-1].weights) for axis in (tiling.rows, tiling.cols))
    while count := min(stream.ready() for stream in streams):
        band = torch.zeros((3, count, height, width), device=device)
        for (row, col), stream in zip(places, streams, strict=True):
            frames = stream.take(count)
            weight = _ramp(row, device)[:, None] * _ramp(col, device)
            band[
                ...,
                row.first : row.first + len(row.weights),
                col.first : col.first + len(col.weights),
            ].addcmul_(frames, weight)
        if skip:
            band, skip = band[:, min(skip, count) :], max(skip - count, 0)
        if band.shape[1]:
            yield band


def _ramp(piece: Piece, device: torch.device) -> Tensor:
    return torch.tensor(piece.weights, dtype=torch.float32, device=device)


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
