"""Latent upsampler networks; modules are named as in the checkpoints.

Residual blocks, one layer that moves channels into pixels or frames, and residual blocks. Norms
are over groups of channels and all pixels and frames (GroupNorm), so a clip is upsampled whole.
Source: ltx_core ``LatentUpsampler``; goldens ``upsample.*``.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.conv3d import Conv3d
from latent_ladder.models.network_configs import (
    UpsamplerConfig,
    upsampler_config,
)
from latent_ladder.models.vae_loading import load_network

NORM_GROUPS = 32

RATIOS = {1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}
"""Scale of the rational resampler as (numerator, denominator): upsample, then stride."""


class ResidualBlock(nn.Module):
    """Residual block: two convolutions with norm and SiLU, plus the input."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, width, rank)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv2 = _convolution(width, width, rank)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) to the same shape; activations are overwritten in place."""
        y = F.silu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.silu(y.add_(x), inplace=True)


class Blur(nn.Module):
    """Depthwise 5x5 low-pass filter with ``stride``; its kernel is in the checkpoint."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("kernel", torch.empty(1, 1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / stride, W / stride), rounded up."""
        if self.stride == 1:
            return x
        kernel = cast(Tensor, self.kernel).expand(x.shape[1], 1, 5, 5)
        return F.conv2d(x, kernel, stride=self.stride, padding=2, groups=x.shape[1])


class RationalResampler(nn.Module):
    """Resampling by a ratio: convolution, pixel shuffle by its numerator, blur with its denominator
    as stride."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.larger, smaller = RATIOS[scale]
        self.conv = nn.Conv2d(width, width * self.larger**2, 3, padding=1)
        self.blur_down = Blur(smaller)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, C, H scale, W scale)."""
        return cast(Tensor, self.blur_down(F.pixel_shuffle(self.conv(x), self.larger)))


class PixelShuffle(nn.Module):
    """Pixel shuffle by 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 4 C, H, W) to (n, C, 2 H, 2 W)."""
        return F.pixel_shuffle(x, 2)


class FrameShuffle(nn.Module):
    """Shuffle of channels into twice the frames and, if ``spatial``, twice the rows and columns."""

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = spatial

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 2 C, F, H, W) to (B, C, 2 F, H, W); with ``spatial`` (B, 8 C, F, H, W) to
        (B, C, 2 F, 2 H, 2 W)."""
        batch, channels, frames, height, width = x.shape
        side = 2 if self.spatial else 1
        inner = channels // (2 * side * side)
        x = x.view(batch, inner, 2, side, side, frames, height, width)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(batch, inner, 2 * frames, side * height, side * width)


class UpsamplerNetwork(nn.Module):
    """Upsampler network on un-normalised latents, as the VAE's encoder outputs them."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        width, rank = config.mid_channels, config.conv_dims
        self.per_frame, self.temporal = rank == 2, config.temporal
        self.initial_conv = _convolution(config.in_channels, width, rank)
        self.initial_norm = nn.GroupNorm(NORM_GROUPS, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width, rank) for _ in range(config.blocks))
        self.upsampler = _resampler(config)
        self.post_upsample_res_blocks = nn.ModuleList(
            ResidualBlock(width, rank) for _ in range(config.blocks)
        )
        self.final_conv = _convolution(width, config.in_channels, rank)

    @torch.no_grad()
    def forward(self, latents: Tensor) -> Tensor:
        """Upsample (B, C, F, H, W) to (B, C, F', H', W')."""
        batch = len(latents)
        x = _merge_frames(latents) if self.per_frame else latents
        x = F.silu(self.initial_norm(self.initial_conv(x)), inplace=True)
        for block in self.res_blocks:
            x = block(x)
        x = self._resample(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        x = self.final_conv(x)
        return _split_frames(x, batch) if self.per_frame else x

    def _resample(self, x: Tensor) -> Tensor:
        if self.temporal:
            return cast(Tensor, self.upsampler(x)[:, :, 1:])
        if self.per_frame:
            return cast(Tensor, self.upsampler(x))
        # Frame by frame, as the layer's output has several times the channels of the result.
        frames = [self.upsampler(frames) for frames in torch.split(_merge_frames(x), 1)]
        return _split_frames(torch.cat(frames), len(x))


def load_upsampler_network(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[UpsamplerNetwork, UpsamplerConfig]:
    """Load a latent upsampler; returns the network and its configuration.

    Raises :class:`UnknownLayout` for an unsupported scale or network.
    """
    config = upsampler_config(component.shapes(), component.config)
    if config.rational and config.scale not in RATIOS:
        raise UnknownLayout(
            f"latent upsampler: scale {config.scale} is not supported, expected one of "
            f"{sorted(RATIOS)}",
            "use a published upsampler of LTX-2.0 or LTX-2.3",
        )
    build = partial(UpsamplerNetwork, config)
    return load_network(component, "", build, device=device, dtype=dtype), config


def _resampler(config: UpsamplerConfig) -> nn.Module:
    width = config.mid_channels
    if config.temporal:
        gain = 8 if config.spatial else 2
        layer = Conv3d(width, gain * width, 3, padding=1)
        return nn.Sequential(layer, FrameShuffle(config.spatial))
    if config.rational:
        return RationalResampler(width, config.scale)
    return nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), PixelShuffle())


def _convolution(in_channels: int, out_channels: int, rank: int) -> nn.Module:
    kind = nn.Conv2d if rank == 2 else Conv3d
    return kind(in_channels, out_channels, 3, padding=1)


def _merge_frames(x: Tensor) -> Tensor:
    """Merge batch and frames: (B, C, F, H, W) to (B F, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _split_frames(frames: Tensor, batch: int) -> Tensor:
    """Split batch and frames, the inverse of :func:`_merge_frames`."""
    return frames.reshape(batch, -1, *frames.shape[1:]).transpose(1, 2)
