"""The tiny video decoder of the TAEHV kind (taeltx2_3): latents to approximate frames.

Layers and names are those of https://github.com/madebyollin/taehv; widths, patch and strides are
read from the file. Information flows forwards in time only, so that one latent frame at a time
goes through all layers and each memory block keeps the frame before it.
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

GROWS = (7, 13, 19)
PROJECTIONS = (1, 8, 14, 20)
LAST = 22


class _Clamp(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Memory(nn.Module):
    """A residual block that also sees the frame before."""

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
        """Frames (n, C, H, W) and, for each, the one before it."""
        return F.relu(self.conv(torch.cat([x, before], 1)) + x)


class _Grow(nn.Module):
    """One frame becomes ``stride`` frames."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n stride, C, H, W)."""
        out: Tensor = self.conv(x).reshape(-1, *x.shape[1:])
        return out


class TinyDecoder(nn.Sequential):
    """``widths`` of the four levels, ``strides`` in time of the three between them."""

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
        self.dropped = math.prod(strides) - 1

    @torch.no_grad()
    def stream(self, latents: Tensor) -> Iterator[NDArray[np.uint8]]:
        """Normalised latents (1, C, F, H, W) -> frames (n, H', W', 3), 8 (F - 1) + 1 in all."""
        weight = next(self.parameters())
        carry: dict[int, Tensor] = {}
        drop = self.dropped
        for frame in latents[0].transpose(0, 1).to(weight).chunk(latents.shape[2]):
            pixels = F.pixel_shuffle(self._through(frame, carry), self.patch)[drop:]
            drop = 0
            if len(pixels):
                yield to_bytes(pixels)

    def _through(self, x: Tensor, carry: dict[int, Tensor]) -> Tensor:
        for i, layer in enumerate(self):
            if isinstance(layer, _Memory):
                before = torch.cat([carry.get(i, torch.zeros_like(x[:1])), x[:-1]])
                carry[i] = x[-1:]
                x = layer(x, before)
            else:
                x = layer(x)
        return x


def to_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """(n, 3, H, W) in 0..1 -> (n, H, W, 3) uint8."""
    scaled = pixels.float().mul(255).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def tiny_channels(component: Component) -> int:
    """Channels of the latents that the decoder reads."""
    return component.shape("decoder.1.weight")[1]


def load_tiny_decoder(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> TinyDecoder:
    """The decoder of a preview VAE. Raises :class:`UnknownLayout` for another arrangement."""
    widths = tuple(component.shape(f"decoder.{i}.weight")[0] for i in PROJECTIONS)
    strides = tuple(
        component.shape(f"decoder.{i}.conv.weight")[0] // width
        for i, width in zip(GROWS, widths, strict=False)
    )
    patch = math.isqrt(component.shape(f"decoder.{LAST}.weight")[0] // 3)
    return load_module(
        lambda: TinyDecoder(tiny_channels(component), widths, strides, patch),
        tensor_readers(component, "decoder."),
        device=device,
        dtype=dtype,
        label=f"{component.file.path.name}: preview decoder",
    )
