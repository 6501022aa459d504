"""Frames through an upscaling network in overlapping tiles, a few at a time.

Memory is that of one tile (or of a few frames' worth of small ones) and of one finished frame.
Tiles are blended by the ramps of :mod:`latent_ladder.latents.tiling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.latents.tiling import Span, spatial_spans, spatial_weights
from latent_ladder.memory.oom import is_out_of_memory
from latent_ladder.upscale.model_upscaler import UpscalingNetwork

TILE_PX, OVERLAP_PX = 512, 32
SMALLEST_TILE_PX = 128


@dataclass
class TiledNetwork:
    """A network and the size of its tiles, halved each time memory runs out."""

    network: UpscalingNetwork
    tile_px: int = TILE_PX
    overlap_px: int = OVERLAP_PX

    def __call__(self, frames: Tensor) -> Tensor:
        """(n, 3, H, W) 0..1 -> (n, 3, H * scale, W * scale) float32, 0..1."""
        while True:
            try:
                return self._all_tiles(frames)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.tile_px <= SMALLEST_TILE_PX:
                    raise
            # Outside the handler, whose traceback holds what failed.
            self.tile_px //= 2

    @torch.inference_mode()
    def _all_tiles(self, frames: Tensor) -> Tensor:
        scale = self.network.scale
        n, _, height, width = frames.shape
        rows, cols = self._axis(height), self._axis(width)
        if len(rows) == len(cols) == 1:
            return self._tile(frames)
        out = frames.new_zeros((n, 3, height * scale, width * scale), dtype=torch.float32)
        # float64 ramps would double the memory of a product
        weighted = product(_weighted(rows, scale, out), _weighted(cols, scale, out))
        for (row, row_ramp), (col, col_ramp) in weighted:
            cut = frames[..., row.start : row.stop, col.start : col.stop]
            place = out[
                ..., row.start * scale : row.stop * scale, col.start * scale : col.stop * scale
            ]
            place.addcmul_(self._tile(cut), row_ramp[:, None] * col_ramp)
        return out

    def _axis(self, length: int) -> tuple[Span, ...]:
        return spatial_spans(length, self.tile_px, min(self.overlap_px, self.tile_px // 2))

    def _tile(self, frames: Tensor) -> Tensor:
        """One tile, filled up to the sides that the network can take."""
        height, width = frames.shape[-2:]
        network = self.network
        filled = F.pad(
            frames.to(network.dtype),
            (0, _missing(width, network), 0, _missing(height, network)),
            mode="replicate",
        )
        out = network.run(filled)[..., : height * network.scale, : width * network.scale]
        return out.float().clamp_(0, 1)


def _missing(length: int, network: UpscalingNetwork) -> int:
    wanted = max(length, network.least)
    return -(-wanted // network.multiple) * network.multiple - length


def _weighted(spans: tuple[Span, ...], scale: int, like: Tensor) -> list[tuple[Span, Tensor]]:
    ramps = spatial_weights(spans, scale)
    return [(s, torch.tensor(w).to(like)) for s, w in zip(spans, ramps, strict=True)]
