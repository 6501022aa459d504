"""Latents -> larger latents: spatial x2, spatial x1.5 and temporal x2 upsamplers.

The network works on latents as the VAE's encoder gives them, so normalised latents are scaled by
the video VAE's per-channel statistics before and back after. Only those statistics are needed,
not the VAE (:func:`latent_ladder.models.vae_loading.statistics`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import RequestError
from latent_ladder.latents.tiling import TilePlan, TileSize, one_tile, plan_tiles, spatial_weights
from latent_ladder.models.latent_upsampler.network import UpsamplerNetwork, load_upsampler_network
from latent_ladder.models.network_configs import Upsampler
from latent_ladder.models.vae_loading import Statistics

TILE_OVERLAP = 4
"""Latents that neighbouring tiles have in common; even, so that x1.5 tiles start at integers."""


@dataclass(frozen=True)
class LatentUpsampler:
    """A loaded upsampler. ``factor``: gain in height and width; ``temporal``: frames 2 F - 1."""

    network: UpsamplerNetwork
    dims: Upsampler
    device: torch.device
    dtype: torch.dtype

    @property
    def factor(self) -> Fraction:
        """Gain in height and in width, 1 for a temporal upsampler."""
        return Fraction(self.dims.scale) if self.dims.spatial else Fraction(1)

    @property
    def temporal(self) -> bool:
        """Whether it doubles the frame rate."""
        return self.dims.temporal

    def output_size(self, frames: int, rows: int, cols: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns after upsampling."""
        grown = 2 * frames - 1 if self.temporal else frames
        return grown, math.ceil(rows * self.factor), math.ceil(cols * self.factor)


def load_upsampler(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> LatentUpsampler:
    """Load an upsampler; its kind follows from its tensors."""
    network, dims = load_upsampler_network(component, device=device, dtype=dtype)
    return LatentUpsampler(network, dims, torch.device(device), dtype)


@torch.no_grad()
def upsample(
    latents: Tensor,
    upsampler: LatentUpsampler,
    vae_statistics: Statistics,
    *,
    adain: float = 0.0,
    tile: int | None = None,
) -> Tensor:
    """Normalised latents (1, C, F, H, W) -> normalised latents, larger, float32.

    ``adain`` moves each channel's mean and deviation towards those of the input (1: all the way).
    ``tile`` bounds the side of what is upsampled at once, in latents (a multiple of 4, at least
    8). Tiles are not exact: the network normalises over all it sees (GroupNorm), so tiles of
    different content come out with slightly different contrast. Leave it out where memory allows.
    Raises :class:`RequestError` for latents of another number of channels.
    """
    if latents.shape[1] != upsampler.dims.in_channels:
        raise RequestError(
            f"latents of {latents.shape[1]} channels, the upsampler takes "
            f"{upsampler.dims.in_channels}",
            "use the upsampler that belongs to the checkpoint",
        )
    x = latents.to(upsampler.device, torch.float32)
    mean, std = (
        values.to(x.device)[:, None, None, None]
        for values in (vae_statistics.mean, vae_statistics.std)
    )
    raw = (x * std + mean).to(upsampler.dtype)
    plan = _plan(raw, tile)
    larger = upsampler.network(raw).float() if plan.count == 1 else _tiled(raw, upsampler, plan)
    result = (larger - mean) / std
    return adapt(result, x, adain) if adain else result


def adapt(latents: Tensor, reference: Tensor, factor: float) -> Tensor:
    """Adaptive instance normalisation (Huang & Belongie 2017): blend ``latents`` with a copy that
    has the ``reference``'s mean and standard deviation in each channel."""
    axes = (2, 3, 4)
    std, mean = torch.std_mean(latents, axes, keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(reference, axes, keepdim=True)
    return torch.lerp(latents, (latents - mean) / std * wanted_std + wanted_mean, factor)


def _plan(latents: Tensor, tile: int | None) -> TilePlan:
    frames, rows, cols = latents.shape[2:]
    if tile is None or max(rows, cols) <= tile:
        return one_tile(frames, rows, cols)
    if tile < 2 * TILE_OVERLAP or tile % 4:
        raise RequestError(f"upsampling tiles of {tile} latents, not a multiple of 4 from 8 on")
    return plan_tiles(frames, rows, cols, TileSize(frames, tile, tile, overlap=TILE_OVERLAP))


def _tiled(raw: Tensor, upsampler: LatentUpsampler, plan: TilePlan) -> Tensor:
    factor = upsampler.factor
    result = torch.zeros((*raw.shape[:2], *upsampler.output_size(*plan.grid)), device=raw.device)
    row_ramps, col_ramps = (
        [torch.tensor(weights, device=raw.device) for weights in spatial_weights(spans, factor)]
        for spans in (plan.rows, plan.cols)
    )
    for row, row_ramp in zip(plan.rows, row_ramps, strict=True):
        for col, col_ramp in zip(plan.cols, col_ramps, strict=True):
            part = raw[..., row.start : row.stop, col.start : col.stop]
            larger = upsampler.network(part).float() * row_ramp[:, None] * col_ramp
            top, left = int(row.start * factor), int(col.start * factor)
            height, width = larger.shape[-2:]
            result[..., top : top + height, left : left + width] += larger
    return result
