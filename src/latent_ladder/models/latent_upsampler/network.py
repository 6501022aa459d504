"""The latent upsamplers as networks, in the names of the original files.

Residual blocks, one layer that turns channels into positions (or frames), residual blocks. Norms
are over groups of channels and all positions and frames, so a clip is upsampled whole.
Maths: ltx_core ``LatentUpsampler``; goldens ``upsample.*``.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models import network_configs as dims
from latent_ladder.models.vae_loading import load_part

NORM_GROUPS = 32

RATIOS = {1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}
"""Scales of the rational resampler: enlarge by the first number, then keep every second-th."""


class Block(nn.Module):
    """Two convolutions with norm and SiLU, plus the input. Overwrites its own activations."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, width, rank)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv2 = _convolution(width, width, rank)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        y = F.silu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.silu(y.add_(x), inplace=True)


class Blur(nn.Module):
    """Depthwise 5x5 low-pass whose kernel is in the file, keeping every ``stride``-th position."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("kernel", torch.empty(1, 1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / stride, W / stride), rounded up."""
        if self.stride == 1:
            return x
        kernel = cast(Tensor, self.kernel).expand(x.shape[1], 1, 5, 5)
        return F.conv2d(x, kernel, stride=self.stride, padding=2, groups=x.shape[1])


class RationalResampler(nn.Module):
    """Convolution, pixel shuffle by a ratio's numerator, blur with its denominator as stride."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.larger, smaller = RATIOS[scale]
        self.conv = nn.Conv2d(width, width * self.larger**2, 3, padding=1)
        self.blur_down = Blur(smaller)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C, H scale, W scale)."""
        return cast(Tensor, self.blur_down(F.pixel_shuffle(self.conv(x), self.larger)))


class PixelShuffle(nn.Module):
    """(n, 4 C, H, W) -> (n, C, 2 H, 2 W)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.pixel_shuffle(x, 2)


class FrameShuffle(nn.Module):
    """(B, t C, F, H, W) -> (B, C, t F, H, W), or with rows and columns doubled as well."""

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = spatial

    def forward(self, x: Tensor) -> Tensor:
        """See the class; frames are doubled in both cases."""
        batch, channels, frames, height, width = x.shape
        side = 2 if self.spatial else 1
        inner = channels // (2 * side * side)
        x = x.view(batch, inner, 2, side, side, frames, height, width)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(batch, inner, 2 * frames, side * height, side * width)


class UpsamplerNetwork(nn.Module):
    """Latents as the VAE's encoder gives them -> the same, larger."""

    def __init__(self, found: dims.Upsampler) -> None:
        super().__init__()
        width, rank = found.mid_channels, found.conv_dims
        self.frames_alone, self.temporal = rank == 2, found.temporal
        self.initial_conv = _convolution(found.in_channels, width, rank)
        self.initial_norm = nn.GroupNorm(NORM_GROUPS, width)
        self.res_blocks = nn.ModuleList(Block(width, rank) for _ in range(found.blocks))
        self.upsampler = _resampler(found)
        self.post_upsample_res_blocks = nn.ModuleList(
            Block(width, rank) for _ in range(found.blocks)
        )
        self.final_conv = _convolution(width, found.in_channels, rank)

    @torch.no_grad()
    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, F, H, W) -> (B, C, F', H', W')."""
        batch = len(latents)
        x = _frames(latents) if self.frames_alone else latents
        x = F.silu(self.initial_norm(self.initial_conv(x)), inplace=True)
        for block in self.res_blocks:
            x = block(x)
        x = self._resampled(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        x = self.final_conv(x)
        return _clips(x, batch) if self.frames_alone else x

    def _resampled(self, x: Tensor) -> Tensor:
        if self.temporal:
            return cast(Tensor, self.upsampler(x)[:, :, 1:])
        if self.frames_alone:
            return cast(Tensor, self.upsampler(x))
        # Frame by frame: the layer's output has several times the channels of what remains.
        frames = [self.upsampler(frames) for frames in torch.split(_frames(x), 1)]
        return _clips(torch.cat(frames), len(x))


def load_upsampler_network(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[UpsamplerNetwork, dims.Upsampler]:
    """A latent upsampler and its dimensions."""
    found = dims.upsampler(component.shapes(), component.config)
    if found.rational and found.scale not in RATIOS:
        raise UnknownLayout(
            f"latent upsampler: scale {found.scale}, known are {sorted(RATIOS)}",
            "use an upsampler as published for LTX-2.0 or LTX-2.3",
        )
    build = partial(UpsamplerNetwork, found)
    return load_part(component, "", build, device=device, dtype=dtype), found


def _resampler(found: dims.Upsampler) -> nn.Module:
    width = found.mid_channels
    if found.temporal:
        gain = 8 if found.spatial else 2
        layer = nn.Conv3d(width, gain * width, 3, padding=1)
        return nn.Sequential(layer, FrameShuffle(found.spatial))
    if found.rational:
        return RationalResampler(width, found.scale)
    return nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), PixelShuffle())


def _convolution(inputs: int, outputs: int, rank: int) -> nn.Module:
    kind = nn.Conv2d if rank == 2 else nn.Conv3d
    return kind(inputs, outputs, 3, padding=1)


def _frames(x: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B F, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _clips(frames: Tensor, batch: int) -> Tensor:
    """The inverse of :func:`_frames`."""
    return frames.reshape(batch, -1, *frames.shape[1:]).transpose(1, 2)
