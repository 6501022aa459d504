"""Tiled upscaling: runs frames through a network in overlapping tiles.

Needs memory for one tile of all frames in a batch, and for the upscaled batch. Tiles are blended
with the ramps of :mod:`latent_ladder.latents.tiling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.latents.tiling import Span, spatial_spans, spatial_weights
from latent_ladder.memory.oom import retry_with_fallbacks
from latent_ladder.upscale.model_upscaler import UpscalingNetwork

TILE_PX, OVERLAP_PX = 512, 32
MIN_TILE_PX = 128


@dataclass
class TiledNetwork:
    """A network and its tile size in px, which is halved each time memory runs out."""

    network: UpscalingNetwork
    tile_px: int = TILE_PX
    overlap_px: int = OVERLAP_PX

    def __call__(self, frames: Tensor) -> Tensor:
        """Upscale (n, 3, H, W) in 0..1 to (n, 3, H * scale, W * scale) float32 in 0..1.

        Raises an out-of-memory error if the smallest tiles do not fit.
        """

        def halve(tile_px: int) -> int:
            self.tile_px = tile_px // 2
            return self.tile_px

        work = partial(self._run_tiles, frames)
        return retry_with_fallbacks(work, self.tile_px, halve, lambda px: px > MIN_TILE_PX)

    @torch.inference_mode()
    def _run_tiles(self, frames: Tensor, tile_px: int) -> Tensor:
        scale = self.network.scale
        n, _, height, width = frames.shape
        rows, cols = self._spans(height, tile_px), self._spans(width, tile_px)
        if len(rows) == len(cols) == 1:
            return self._run_tile(frames)
        out = frames.new_zeros((n, 3, height * scale, width * scale), dtype=torch.float32)
        # Ramps in float32: float64 would double the memory of the product.
        weighted = product(_spans_with_ramps(rows, scale, out), _spans_with_ramps(cols, scale, out))
        for (row, row_ramp), (col, col_ramp) in weighted:
            tile = frames[..., row.start : row.stop, col.start : col.stop]
            target = out[
                ..., row.start * scale : row.stop * scale, col.start * scale : col.stop * scale
            ]
            target.addcmul_(self._run_tile(tile), row_ramp[:, None] * col_ramp)
        return out

    def _spans(self, length: int, tile_px: int) -> tuple[Span, ...]:
        return spatial_spans(length, tile_px, min(self.overlap_px, tile_px // 2))

    def _run_tile(self, frames: Tensor) -> Tensor:
        """Upscale one tile, padded to a size that the network accepts."""
        height, width = frames.shape[-2:]
        network = self.network
        filled = F.pad(
            frames.to(network.dtype),
            (0, _padding(width, network), 0, _padding(height, network)),
            mode="replicate",
        )
        out = network.run(filled)[..., : height * network.scale, : width * network.scale]
        return out.float().clamp_(0, 1)


def _padding(length: int, network: UpscalingNetwork) -> int:
    wanted = max(length, network.min_side)
    return -(-wanted // network.multiple) * network.multiple - length


def _spans_with_ramps(
    spans: tuple[Span, ...], scale: int, like: Tensor
) -> list[tuple[Span, Tensor]]:
    ramps = spatial_weights(spans, scale)
    return [(s, torch.tensor(w).to(like)) for s, w in zip(spans, ramps, strict=True)]
