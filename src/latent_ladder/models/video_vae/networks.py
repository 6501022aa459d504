"""Encoder and decoder of the video VAE; modules are named as in the checkpoints.

Both process a clip in chunks, with the same result as for the whole (:mod:`causal_layers`), so
memory does not depend on the number of frames.

Decoding stores two frames per convolution and per residual block, and processes chunks of
``CHUNK_VALUES`` values (:mod:`latent_ladder.models.network_configs`). For the published LTX-2.3
decoder the stored frames are 610 values per pixel of one output frame
(``VideoVaeConfig.cached_values``): 1.2 kB per pixel in bfloat16, or 2.6 GB at 1920x1088. In
addition it needs about ten tensors of a chunk's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.models.network_configs import (
    STRIDES,
    VideoVaeConfig,
    video_decoder_config,
    video_encoder_config,
)
from latent_ladder.models.vae_loading import load_network
from latent_ladder.models.video_vae.causal_layers import (
    ChunkLevel,
    ConvCache,
    Downsample,
    FrameConv,
    ResidualBlocks,
    Upsample,
    run_levels,
    to_patches,
    to_pixels,
)

N = TypeVar("N", bound=nn.Module)


class VideoEncoder(nn.Module):
    """Causal encoder: frames to un-normalised latents (the mean of their distribution)."""

    def __init__(self, config: VideoVaeConfig) -> None:
        super().__init__()
        self.config = config
        padding, widths = config.padding, config.widths
        self.conv_in = FrameConv(3 * config.patch**2, widths[0], padding, True)
        blocks: list[nn.Module] = [ResidualBlocks(config.layers[0], widths[0], padding, True)]
        for i, kind in enumerate(config.resamplers):
            blocks.append(Downsample((widths[i], widths[i + 1]), kind, padding))
            blocks.append(ResidualBlocks(config.layers[i + 1], widths[i + 1], padding, True))
        self.down_blocks = nn.ModuleList(blocks)
        self.conv_out = FrameConv(widths[-1], config.latent_channels + 1, padding, True)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (1, 3, F, H, W) in -1..1 to (1, C, F', H', W'), F' = 1 + (F - 1) // 8."""
        return torch.cat(list(self.stream([frames[0].transpose(0, 1)]))).transpose(0, 1)[None]

    @torch.no_grad()
    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a clip in chunks (n, 3, H, W) of any length; yields latents (m, C, H', W').

        The first latent frame is made from one frame, the others from groups of 8. Frames after
        the last full group are ignored.
        """
        cache, levels = ConvCache(), self._chunk_levels()
        for frames in chunks:
            yield from run_levels(levels, frames, cache, last=False)

    def _chunk_levels(self) -> list[ChunkLevel]:
        first, *others = self.down_blocks
        widths, patch = self.config.widths, self.config.patch
        pairs = zip(others[::2], others[1::2], widths[1:], self.config.resamplers, strict=True)
        return [
            ChunkLevel(partial(self._run_input_level, first), max(3, widths[0] / patch**2)),
            *(
                ChunkLevel(
                    partial(_resample_and_run, down, stage),
                    max(before, after / math.prod(STRIDES[kind])),
                )
                for before, (down, stage, after, kind) in zip(widths, pairs, strict=False)
            ),
            ChunkLevel(self._run_output_level, widths[-1]),
        ]

    def _run_input_level(self, stage: nn.Module, x: Tensor, cache: ConvCache) -> Tensor:
        return cast(Tensor, stage(self.conv_in(to_patches(x, self.config.patch), cache), cache))

    def _run_output_level(self, x: Tensor, cache: ConvCache) -> Tensor:
        moments = self.conv_out(x, cache, activate=True)
        return cast(Tensor, moments[:, : self.config.latent_channels])


class VideoDecoder(nn.Module):
    """Decoder: un-normalised latents to frames."""

    def __init__(self, config: VideoVaeConfig) -> None:
        super().__init__()
        self.config = config
        padding, causal, widths = config.padding, config.causal, config.widths
        self.conv_in = FrameConv(config.latent_channels, widths[0], padding, causal)
        blocks: list[nn.Module] = [ResidualBlocks(config.layers[0], widths[0], padding, causal)]
        for i, (kind, residual) in enumerate(zip(config.resamplers, config.residual, strict=True)):
            blocks.append(Upsample((widths[i], widths[i + 1]), kind, padding, causal, residual))
            blocks.append(ResidualBlocks(config.layers[i + 1], widths[i + 1], padding, causal))
        self.up_blocks = nn.ModuleList(blocks)
        self.conv_out = FrameConv(widths[-1], 3 * config.patch**2, padding, causal)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (1, C, F, H, W) to (1, 3, F', H', W'), F' = 8 (F - 1) + 1, about -1..1."""
        return torch.cat(list(self.stream(latents))).transpose(0, 1)[None]

    @torch.no_grad()
    def stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode latents (1, C, F, H, W); yields chunks (n, 3, H', W') in order, as new tensors."""
        yield from run_levels(
            self._chunk_levels(), latents[0].transpose(0, 1), ConvCache(), last=True
        )

    def _chunk_levels(self) -> list[ChunkLevel]:
        first, *others = self.up_blocks
        widths = self.config.widths
        pairs = zip(others[::2], others[1::2], widths[1:], self.config.resamplers, strict=True)
        return [
            ChunkLevel(
                partial(self._run_input_level, first), max(self.config.latent_channels, widths[0])
            ),
            *(
                ChunkLevel(
                    partial(_resample_and_run, up, stage),
                    max(before, after * math.prod(STRIDES[kind])),
                )
                for before, (up, stage, after, kind) in zip(widths, pairs, strict=False)
            ),
            ChunkLevel(self._run_output_level, max(widths[-1], 3 * self.config.patch**2)),
        ]

    def _run_input_level(self, stage: nn.Module, x: Tensor, cache: ConvCache) -> Tensor:
        return cast(Tensor, stage(self.conv_in(x, cache), cache))

    def _run_output_level(self, x: Tensor, cache: ConvCache) -> Tensor:
        return to_pixels(self.conv_out(x, cache, activate=True), self.config.patch)


def _resample_and_run(resample: nn.Module, stage: nn.Module, x: Tensor, cache: ConvCache) -> Tensor:
    return cast(Tensor, stage(resample(x, cache), cache))


def load_video_encoder(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> VideoEncoder:
    """Load the encoder of a video VAE; raises :class:`UnknownLayout` for an unsupported one."""
    config = video_encoder_config(component.shapes(), component.config)
    build = partial(VideoEncoder, config)
    return pack_kernels(load_network(component, "encoder.", build, device=device, dtype=dtype))


def load_video_decoder(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> VideoDecoder:
    """Load the decoder of a video VAE; raises :class:`UnknownLayout` for an unsupported one."""
    config = video_decoder_config(component.shapes(), component.config)
    build = partial(VideoDecoder, config)
    return pack_kernels(load_network(component, "decoder.", build, device=device, dtype=dtype))


def pack_kernels(network: N) -> N:
    """Change the memory layout of all kernels for their device; returns ``network``."""
    for layer in network.modules():
        if isinstance(layer, FrameConv):
            layer.pack()
    return network
