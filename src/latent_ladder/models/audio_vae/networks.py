"""Encoder and decoder of the audio VAE; modules are named as in the checkpoints.

Two-dimensional convolutions over (time, mel band), causal in time: kernels are padded before the
first row. Two resamplings turn four mel frames into one latent frame; the first mel frame has its
own. Norms are RMS over channels at each position, without weights.

Audio is processed in chunks, between which each convolution stores its last two rows. The result
is the same as for the whole, in memory that does not depend on its length. Activations are
overwritten in place: for inference only. Source: audio autoencoder of ltx-core (``audio_vae``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.audio_chunks import CHUNK_LATENTS, CHUNK_LATENTS_ELSEWHERE
from latent_ladder.models.network_configs import (
    AudioVaeConfig,
    audio_vae_config,
)
from latent_ladder.models.vae_loading import load_network
from latent_ladder.models.video_vae.causal_layers import ConvCache

EPS = 1e-6
SUPPORTED_AXIS = "height"
"""Causal axis of all published files: time, the first of the two axes of a spectrogram."""
MELS_PER_LATENT = 4


class _CausalConv(nn.Module):
    """Convolution padded before the first row in time, and on both sides in frequency.

    ``activate``: divide the input by its RMS over channels and apply SiLU first.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.reach = kernel - 1
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=(0, self.reach // 2))

    def forward(self, x: Tensor, cache: ConvCache, activate: bool = False) -> Tensor:
        if not self.reach:
            return cast(Tensor, self.conv(x))
        padded, target = _prepend_context(self, x, self.reach, cache)
        if activate:
            mean = x.square().mean(1, keepdim=True)
            torch.mul(x, mean.add_(EPS).rsqrt_(), out=target)
            F.silu(target, inplace=True)
        else:
            target.copy_(x)
        cache.store(self, padded[:, :, -self.reach :])
        return cast(Tensor, self.conv(padded))


class _ResidualBlock(nn.Module):
    """Residual block: two convolutions, each after norm and SiLU, plus the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _CausalConv(in_channels, out_channels)
        self.conv2 = _CausalConv(out_channels, out_channels)
        has_shortcut = in_channels != out_channels
        self.nin_shortcut = _CausalConv(in_channels, out_channels, 1) if has_shortcut else None

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x, cache, True), cache, True)
        return y.add_(x if self.nin_shortcut is None else self.nin_shortcut(x, cache))


class _Downsample(nn.Module):
    """Downsampling by 2 in time and bands. All chunks but the last must have an even length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        padded, target = _prepend_context(self, x, 2, cache, 1)
        target.copy_(x)
        cache.store(self, padded[:, :, -2:, :-1])
        return cast(Tensor, self.conv(padded))


class _Upsample(nn.Module):
    """Upsampling by 2 in time and bands; the first row is dropped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _CausalConv(width, width)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), cache)
        return out[:, :, 1:] if cache.starts(self, out) else out


class _Level(nn.Module):
    """Residual blocks of one resolution, then resampling (if any) as the module ``name``."""

    def __init__(self, blocks: Sequence[nn.Module], name: str, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.resample_name = name
        if resample is not None:
            self.add_module(name, resample)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        for block in self.block:
            x = block(x, cache)
        resample = self._modules.get(self.resample_name)
        return x if resample is None else cast(Tensor, resample(x, cache))


class AudioEncoder(nn.Module):
    """Encoder: log-mel (B, 2, T, 64) to means and log-variances (B, 2 C, T', M).

    T' = (T + 3) // 4.
    """

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.base
        self.conv_in = _CausalConv(config.mel_channels, width)
        levels = []
        for number, multiplier in enumerate(config.multipliers):
            out_channels = config.base * multiplier
            widths = [width, *[out_channels] * config.blocks]
            last = number == len(config.multipliers) - 1
            down = None if last else _Downsample(out_channels)
            levels.append(_Level(_residual_blocks(widths), "downsample", down))
            width = out_channels
        self.down = nn.ModuleList(levels)
        self.mid = _middle_blocks(width)
        self.conv_out = _CausalConv(width, 2 * config.latent_channels)

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """Encode a spectrogram in chunks."""
        return _run_in_chunks(self._run_chunk, mel, MELS_PER_LATENT)

    def _run_chunk(self, mel: Tensor, cache: ConvCache) -> Tensor:
        x = self.conv_in(mel, cache)
        for layer in (*self.down, *self.mid.values()):
            x = layer(x, cache)
        return cast(Tensor, self.conv_out(x, cache, True))


class AudioDecoder(nn.Module):
    """Decoder: latents (B, C, T, M) to log-mel (B, 2, 4 T - 3, 64)."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.base * config.multipliers[-1]
        self.conv_in = _CausalConv(config.latent_channels, width)
        self.mid = _middle_blocks(width)
        levels: list[nn.Module] = []
        for number, multiplier in reversed(list(enumerate(config.multipliers))):
            out_channels = config.base * multiplier
            up = _Upsample(out_channels) if number else None
            levels.insert(
                0,
                _Level(
                    _residual_blocks([width, *[out_channels] * (config.blocks + 1)]), "upsample", up
                ),
            )
            width = out_channels
        self.up = nn.ModuleList(levels)
        self.conv_out = _CausalConv(width, config.mel_channels)

    @torch.no_grad()
    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents in chunks."""
        return _run_in_chunks(self._run_chunk, latents, 1)

    def _run_chunk(self, latents: Tensor, cache: ConvCache) -> Tensor:
        x = self.conv_in(latents, cache)
        for layer in (*self.mid.values(), *reversed(self.up)):
            x = layer(x, cache)
        return cast(Tensor, self.conv_out(x, cache, True))


def load_audio_encoder(component: Component, *, device: torch.device | str) -> AudioEncoder:
    """Load the encoder of an audio VAE, in float32; raises :class:`UnknownLayout`."""
    build = partial(AudioEncoder, _read_config(component))
    return load_network(component, "encoder.", build, device=device, dtype=torch.float32)


def load_audio_decoder(component: Component, *, device: torch.device | str) -> AudioDecoder:
    """Load the decoder of an audio VAE, in float32; raises :class:`UnknownLayout`."""
    build = partial(AudioDecoder, _read_config(component))
    return load_network(component, "decoder.", build, device=device, dtype=torch.float32)


def _read_config(component: Component) -> AudioVaeConfig:
    config = audio_vae_config(component.shapes(), component.config)
    if config.causality_axis != SUPPORTED_AXIS:
        raise UnknownLayout(
            f"{component.file.path.name}: the audio VAE is causal along {config.causality_axis}, "
            f"expected {SUPPORTED_AXIS} (time)",
            "use the published audio VAE of LTX-2.0 or LTX-2.3",
        )
    return config


def _residual_blocks(widths: Sequence[int]) -> list[nn.Module]:
    return [_ResidualBlock(before, after) for before, after in pairwise(widths)]


def _middle_blocks(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({f"block_{n}": _ResidualBlock(width, width) for n in (1, 2)})


def _run_in_chunks(run: Callable[[Tensor, ConvCache], Tensor], x: Tensor, rows: int) -> Tensor:
    """Apply ``run`` to ``x`` (B, C, T, M) in chunks; a latent frame is ``rows`` rows of ``x``."""
    latents = CHUNK_LATENTS.get(x.device.type, CHUNK_LATENTS_ELSEWHERE)
    cache, outputs = ConvCache(), []
    chunks = torch.split(x, latents * rows, dim=2)
    for number, chunk in enumerate(chunks):
        cache.is_last = number == len(chunks) - 1
        outputs.append(run(chunk, cache))
    return torch.cat(outputs, 2)


def _prepend_context(
    layer: nn.Module, x: Tensor, rows: int, cache: ConvCache, columns: int = 0
) -> tuple[Tensor, Tensor]:
    """Allocate a padded input: the layer's last ``rows`` (zeros at the start), then room for ``x``.

    Returns the padded tensor and a view of the part to copy ``x`` to. ``columns`` of zeros are
    added after the bands.
    """
    batch, channels, count, bands = x.shape
    padded = x.new_empty((batch, channels, rows + count, bands + columns))
    context = cache.get(layer)
    padded[:, :, :rows, :bands] = 0 if context is None else context
    padded[..., bands:] = 0
    return padded, padded[:, :, rows:, :bands]
