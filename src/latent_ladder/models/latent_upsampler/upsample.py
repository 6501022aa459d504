"""Upsampling of video latents: spatial x2, spatial x1.5 and temporal x2.

The network takes un-normalised latents, so normalised latents are scaled by the video VAE's
per-channel statistics before, and back after. Only the statistics are needed, not the VAE
(:func:`latent_ladder.models.vae_loading.read_latent_statistics`).
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
from latent_ladder.models.network_configs import UpsamplerConfig
from latent_ladder.models.vae_loading import LatentStatistics

TILE_OVERLAP = 4
"""Overlap of neighbouring tiles in latents; even, so that x1.5 tiles start at integers."""


@dataclass(frozen=True)
class LatentUpsampler:
    """Loaded latent upsampler, spatial or temporal."""

    network: UpsamplerNetwork
    config: UpsamplerConfig
    device: torch.device
    dtype: torch.dtype

    @property
    def factor(self) -> Fraction:
        """Scale of height and width, 1 for a temporal upsampler."""
        return Fraction(self.config.scale) if self.config.spatial else Fraction(1)

    @property
    def temporal(self) -> bool:
        """True if it doubles the frame rate (F latent frames become 2 F - 1)."""
        return self.config.temporal

    def output_size(self, frames: int, rows: int, cols: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of the result."""
        output_frames = 2 * frames - 1 if self.temporal else frames
        return output_frames, math.ceil(rows * self.factor), math.ceil(cols * self.factor)


def load_upsampler(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> LatentUpsampler:
    """Load an upsampler; its kind and scale are read from its tensors.

    Raises :class:`UnknownLayout` for an unsupported one.
    """
    network, config = load_upsampler_network(component, device=device, dtype=dtype)
    return LatentUpsampler(network, config, torch.device(device), dtype)


@torch.no_grad()
def upsample(
    latents: Tensor,
    upsampler: LatentUpsampler,
    vae_statistics: LatentStatistics,
    *,
    adain: float = 0.0,
    tile: int | None = None,
) -> Tensor:
    """Upsample normalised latents (1, C, F, H, W); the result is normalised too, float32.

    ``adain``: strength (0 to 1) of adjusting each channel's mean and standard deviation to those
    of the input. ``tile``: largest side that is upsampled at once, in latents (a multiple of 4, at
    least 8). Tiling is not exact: the network normalises over its whole input (GroupNorm), so
    tiles of different content get slightly different contrast; use it only if memory requires it.
    Raises :class:`RequestError` for latents with another number of channels, or a wrong ``tile``.
    """
    if latents.shape[1] != upsampler.config.in_channels:
        raise RequestError(
            f"the latents have {latents.shape[1]} channels, the upsampler needs "
            f"{upsampler.config.in_channels}",
            "use the upsampler of the checkpoint's model family",
        )
    x = latents.to(upsampler.device, torch.float32)
    mean, std = (
        values.to(x.device)[:, None, None, None]
        for values in (vae_statistics.mean, vae_statistics.std)
    )
    raw = (x * std + mean).to(upsampler.dtype)
    plan = _plan_tiles(raw, tile)
    larger = (
        upsampler.network(raw).float() if plan.count == 1 else _upsample_tiles(raw, upsampler, plan)
    )
    result = (larger - mean) / std
    return apply_adain(result, x, adain) if adain else result


def apply_adain(latents: Tensor, reference: Tensor, factor: float) -> Tensor:
    """Adaptive instance normalisation: adjust channel statistics to those of ``reference``.

    Blends ``latents`` (B, C, F, H, W), with weight ``factor``, with a copy that has the mean and
    standard deviation of ``reference`` in each channel. Source: Huang & Belongie 2017,
    arXiv 1703.06868.
    """
    axes = (2, 3, 4)
    std, mean = torch.std_mean(latents, axes, keepdim=True)
    target_std, target_mean = torch.std_mean(reference, axes, keepdim=True)
    return torch.lerp(latents, (latents - mean) / std * target_std + target_mean, factor)


def _plan_tiles(latents: Tensor, tile: int | None) -> TilePlan:
    frames, rows, cols = latents.shape[2:]
    if tile is None or max(rows, cols) <= tile:
        return one_tile(frames, rows, cols)
    if tile < 2 * TILE_OVERLAP or tile % 4:
        raise RequestError(
            f"upsampling tile of {tile} latents, expected a multiple of 4, 8 or more"
        )
    return plan_tiles(frames, rows, cols, TileSize(frames, tile, tile, overlap=TILE_OVERLAP))


def _upsample_tiles(raw: Tensor, upsampler: LatentUpsampler, plan: TilePlan) -> Tensor:
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
