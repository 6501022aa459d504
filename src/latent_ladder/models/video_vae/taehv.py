"""Tiny video decoder (TAEHV, taeltx2_3): latents to approximate frames, for previews.

Layers and names are those of https://github.com/madebyollin/taehv; widths, patch and strides are
read from the file. The decoder is causal, so latent frames are decoded one at a time, and each
memory block stores the frame before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ladder.checkpoints.components import Component
from latent_ladder.models.weights.loading import load_module, tensor_readers

GROW_LAYERS = (7, 13, 19)
PROJECTION_LAYERS = (1, 8, 14, 20)
LAST_LAYER = 22
"""Indices of layers in the file, from which widths, strides and patch are read."""


class _Clamp(nn.Module):
    """Soft clamp of latents: 3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Memory(nn.Module):
    """Residual block over each frame and the frame before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Frames ``x`` (n, C, H, W) and the frame ``before`` each of them, to (n, C, H, W)."""
        return F.relu(self.conv(torch.cat([x, before], 1)) + x)


class _Grow(nn.Module):
    """Temporal upsampling: one frame becomes ``stride`` frames."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n stride, C, H, W)."""
        out: Tensor = self.conv(x).reshape(-1, *x.shape[1:])
        return out


class TinyDecoder(nn.Sequential):
    """Tiny decoder with the ``widths`` of four levels and three temporal ``strides`` between them.

    ``channels``: latent channels; ``patch``: pixels per side of an output patch.
    """

    def __init__(
        self, channels: int, widths: tuple[int, ...], strides: tuple[int, ...], patch: int
    ) -> None:
        layers: list[nn.Module] = [
            _Clamp(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()
        ]  # fmt: skip
        for width, after, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [_Memory(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), _Grow(width, stride)]
            layers += [nn.Conv2d(width, after, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * patch**2, 3, padding=1)]
        super().__init__(*layers)
        self.patch = patch
        self.leading_frames = math.prod(strides) - 1

    @torch.no_grad()
    def stream(self, latents: Tensor) -> Iterator[NDArray[np.uint8]]:
        """Decode normalised latents (1, C, F, H, W); yields frames (n, H', W', 3) uint8.

        There are 8 (F - 1) + 1 frames in total.
        """
        weight = next(self.parameters())
        cache: dict[int, Tensor] = {}
        drop = self.leading_frames
        for frame in latents[0].transpose(0, 1).to(weight).chunk(latents.shape[2]):
            pixels = F.pixel_shuffle(self._run_layers(frame, cache), self.patch)[drop:]
            drop = 0
            if len(pixels):
                yield frames_to_uint8(pixels)

    def _run_layers(self, x: Tensor, cache: dict[int, Tensor]) -> Tensor:
        """Run all layers; ``cache`` stores the last frame of each memory block's input."""
        for i, layer in enumerate(self):
            if isinstance(layer, _Memory):
                before = torch.cat([cache.get(i, torch.zeros_like(x[:1])), x[:-1]])
                cache[i] = x[-1:]
                x = layer(x, before)
            else:
                x = layer(x)
        return x


def frames_to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Convert frames (n, 3, H, W) in 0..1 to (n, H, W, 3) uint8."""
    scaled = pixels.float().mul(255).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def tiny_decoder_channels(component: Component) -> int:
    """Number of latent channels of a tiny decoder, from its tensor shapes."""
    return component.shape("decoder.1.weight")[1]


def load_tiny_decoder(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> TinyDecoder:
    """Load the decoder of a preview VAE; raises :class:`UnknownLayout` for other layers."""
    widths = tuple(component.shape(f"decoder.{i}.weight")[0] for i in PROJECTION_LAYERS)
    strides = tuple(
        component.shape(f"decoder.{i}.conv.weight")[0] // width
        for i, width in zip(GROW_LAYERS, widths, strict=False)
    )
    patch = math.isqrt(component.shape(f"decoder.{LAST_LAYER}.weight")[0] // 3)
    return load_module(
        lambda: TinyDecoder(tiny_decoder_channels(component), widths, strides, patch),
        tensor_readers(component, "decoder."),
        device=device,
        dtype=dtype,
        label=f"{component.file.path.name}: preview decoder",
    )
