"""Encoder and decoder of the video VAE, in the names of the original files.

Both take a clip in chunks and give exactly what they would give of the whole
(``models.video_vae.causal_layers``), so their memory does not grow with the number of frames.

A decode holds two frames per convolution and per residual block, and works on
``models.network_configs.CHUNK_VALUES`` values at a time. For the published LTX-2.3
decoder that is 610 values per pixel of one output frame (``VideoCoder.held_values``), 1.2 kB
a pixel in bfloat16 or 2.6 GB at 1920x1088, whatever the number of frames, and about ten tensors of
a chunk's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.models import network_configs as dims
from latent_ladder.models.vae_loading import load_part
from latent_ladder.models.video_vae.causal_layers import (
    STRIDES,
    Carry,
    Downsample,
    FrameConv,
    Level,
    Stage,
    Upsample,
    chunked,
    to_patches,
    to_pixels,
)

N = TypeVar("N", bound=nn.Module)


class VideoEncoder(nn.Module):
    """Frames -> un-normalised latents, the mean of their distribution. Causal."""

    def __init__(self, coder: dims.VideoCoder) -> None:
        super().__init__()
        self.coder = coder
        padding, widths = coder.padding, coder.widths
        self.conv_in = FrameConv(3 * coder.patch**2, widths[0], padding, True)
        blocks: list[nn.Module] = [Stage(coder.layers[0], widths[0], padding, True)]
        for i, kind in enumerate(coder.resamplers):
            blocks.append(Downsample((widths[i], widths[i + 1]), kind, padding))
            blocks.append(Stage(coder.layers[i + 1], widths[i + 1], padding, True))
        self.down_blocks = nn.ModuleList(blocks)
        self.conv_out = FrameConv(widths[-1], coder.latent_channels + 1, padding, True)

    def forward(self, frames: Tensor) -> Tensor:
        """(1, 3, F, H, W) in -1..1 -> (1, C, F', H', W'), F' = 1 + (F - 1) // 8."""
        return torch.cat(list(self.stream([frames[0].transpose(0, 1)]))).transpose(0, 1)[None]

    @torch.no_grad()
    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames (n, 3, H, W) of a clip in chunks of any length -> latents (m, C, H', W').

        Frames after the last full group of 8 (before it, one alone) give nothing.
        """
        carry, levels = Carry(), self._levels()
        for frames in chunks:
            yield from chunked(levels, frames, carry, last=False)

    def _levels(self) -> list[Level]:
        first, *others = self.down_blocks
        widths, patch = self.coder.widths, self.coder.patch
        pairs = zip(others[::2], others[1::2], widths[1:], self.coder.resamplers, strict=True)
        return [
            Level(partial(self._enter, first), max(3, widths[0] / patch**2)),
            *(
                Level(partial(_both, down, stage), max(before, after / math.prod(STRIDES[kind])))
                for before, (down, stage, after, kind) in zip(widths, pairs, strict=False)
            ),
            Level(self._leave, widths[-1]),
        ]

    def _enter(self, stage: nn.Module, x: Tensor, carry: Carry) -> Tensor:
        return cast(Tensor, stage(self.conv_in(to_patches(x, self.coder.patch), carry), carry))

    def _leave(self, x: Tensor, carry: Carry) -> Tensor:
        moments = self.conv_out(x, carry, activate=True)
        return cast(Tensor, moments[:, : self.coder.latent_channels])


class VideoDecoder(nn.Module):
    """Un-normalised latents -> frames."""

    def __init__(self, coder: dims.VideoCoder) -> None:
        super().__init__()
        self.coder = coder
        padding, causal, widths = coder.padding, coder.causal, coder.widths
        self.conv_in = FrameConv(coder.latent_channels, widths[0], padding, causal)
        blocks: list[nn.Module] = [Stage(coder.layers[0], widths[0], padding, causal)]
        for i, (kind, residual) in enumerate(zip(coder.resamplers, coder.residual, strict=True)):
            blocks.append(Upsample((widths[i], widths[i + 1]), kind, padding, causal, residual))
            blocks.append(Stage(coder.layers[i + 1], widths[i + 1], padding, causal))
        self.up_blocks = nn.ModuleList(blocks)
        self.conv_out = FrameConv(widths[-1], 3 * coder.patch**2, padding, causal)

    def forward(self, latents: Tensor) -> Tensor:
        """(1, C, F, H, W) -> (1, 3, F', H', W'), about -1..1; F' = 1 + 8 (F - 1)."""
        return torch.cat(list(self.stream(latents))).transpose(0, 1)[None]

    @torch.no_grad()
    def stream(self, latents: Tensor) -> Iterator[Tensor]:
        """(1, C, F, H, W) -> chunks (n, 3, H', W') in order, each new memory."""
        yield from chunked(self._levels(), latents[0].transpose(0, 1), Carry(), last=True)

    def _levels(self) -> list[Level]:
        first, *others = self.up_blocks
        widths = self.coder.widths
        pairs = zip(others[::2], others[1::2], widths[1:], self.coder.resamplers, strict=True)
        return [
            Level(partial(self._enter, first), max(self.coder.latent_channels, widths[0])),
            *(
                Level(partial(_both, up, stage), max(before, after * math.prod(STRIDES[kind])))
                for before, (up, stage, after, kind) in zip(widths, pairs, strict=False)
            ),
            Level(self._leave, max(widths[-1], 3 * self.coder.patch**2)),
        ]

    def _enter(self, stage: nn.Module, x: Tensor, carry: Carry) -> Tensor:
        return cast(Tensor, stage(self.conv_in(x, carry), carry))

    def _leave(self, x: Tensor, carry: Carry) -> Tensor:
        return to_pixels(self.conv_out(x, carry, activate=True), self.coder.patch)


def _both(resample: nn.Module, stage: nn.Module, x: Tensor, carry: Carry) -> Tensor:
    return cast(Tensor, stage(resample(x, carry), carry))


def load_video_encoder(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> VideoEncoder:
    """The encoder of a video VAE; its dimensions are its ``coder``."""
    coder = dims.video_encoder(component.shapes(), component.config)
    build = partial(VideoEncoder, coder)
    return packed(load_part(component, "encoder.", build, device=device, dtype=dtype))


def load_video_decoder(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> VideoDecoder:
    """The decoder of a video VAE; its dimensions are its ``coder``."""
    coder = dims.video_decoder(component.shapes(), component.config)
    build = partial(VideoDecoder, coder)
    return packed(load_part(component, "decoder.", build, device=device, dtype=dtype))


def packed(network: N) -> N:
    """The ``network``, its kernels laid out for the device they are on."""
    for layer in network.modules():
        if isinstance(layer, FrameConv):
            layer.pack()
    return network
