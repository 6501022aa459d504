"""The networks of the audio VAE: log-mel spectrograms <-> latents, under the files' own names.

Two-dimensional convolutions over (time, mel band) that never look ahead in time: every kernel is
padded in front of its first row. Two resamplings make one latent of four mel frames; the first
mel frame has a latent of its own. Norms are RMS over channels at each position, without weights.
Source: the audio autoencoder of ltx-core (``audio_vae``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ladder.checkpoints.layout import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models import networks_dims as dims
from latent_ladder.models.parts import load_part

EPS = 1e-6
SUPPORTED_AXIS = "height"
"""The axis that is causal in every published file: time, the first of a spectrogram's two."""


class _CausalConv(nn.Module):
    """A convolution padded in front in time, and on both sides in frequency."""

    def __init__(self, before: int, after: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel)

    def forward(self, x: Tensor) -> Tensor:
        reach = self.conv.kernel_size[0] - 1
        out: Tensor = self.conv(F.pad(x, (reach // 2, reach - reach // 2, reach, 0)))
        return out


class _Block(nn.Module):
    """Two convolutions, each after norm and SiLU, beside a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = _CausalConv(before, after)
        self.conv2 = _CausalConv(after, after)
        self.nin_shortcut = _CausalConv(before, after, 1) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(_activated(self.conv1(_activated(x))))
        short = x if self.nin_shortcut is None else self.nin_shortcut(x)
        out: Tensor = y.add_(short) if not torch.is_grad_enabled() else y + short
        return out


class _Down(nn.Module):
    """Half the time and half the bands."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 2, 0)))
        return out


class _Up(nn.Module):
    """Twice the time, less the first frame's copy, and twice the bands."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _CausalConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out[:, :, 1:]


class _Level(nn.Module):
    """Blocks of one resolution and the resampling after them."""

    def __init__(self, blocks: Sequence[nn.Module], name: str, after: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.after = name
        if after is not None:
            self.add_module(name, after)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        after = self._modules.get(self.after)
        return x if after is None else cast(Tensor, after(x))


class AudioEncoder(nn.Module):
    """Log-mel (B, 2, T, 64) -> means and log-variances (B, 2 C, T', M), T' = (T + 3) // 4."""

    def __init__(self, coder: dims.AudioCoder) -> None:
        super().__init__()
        self.coder = coder
        width = coder.base
        self.conv_in = _CausalConv(coder.mel_channels, width)
        levels = []
        for number, multiplier in enumerate(coder.multipliers):
            after = coder.base * multiplier
            widths = [width, *[after] * coder.blocks]
            last = number == len(coder.multipliers) - 1
            down = None if last else _Down(after)
            levels.append(_Level(_blocks(widths), "downsample", down))
            width = after
        self.down = nn.ModuleList(levels)
        self.mid = _mid(width)
        self.conv_out = _CausalConv(width, 2 * coder.latent_channels)

    def forward(self, mel: Tensor) -> Tensor:
        """Encode a whole spectrogram."""
        x = self.conv_in(mel)
        for level in self.down:
            x = level(x)
        return _out(self.conv_out, self.mid, x)


class AudioDecoder(nn.Module):
    """Latents (B, C, T, M) -> log-mel (B, 2, 4 T - 3, 64)."""

    def __init__(self, coder: dims.AudioCoder) -> None:
        super().__init__()
        self.coder = coder
        width = coder.base * coder.multipliers[-1]
        self.conv_in = _CausalConv(coder.latent_channels, width)
        self.mid = _mid(width)
        levels: list[nn.Module] = []
        for number, multiplier in reversed(list(enumerate(coder.multipliers))):
            after = coder.base * multiplier
            up = _Up(after) if number else None
            levels.insert(
                0, _Level(_blocks([width, *[after] * (coder.blocks + 1)]), "upsample", up)
            )
            width = after
        self.up = nn.ModuleList(levels)
        self.conv_out = _CausalConv(width, coder.mel_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode whole."""
        x = self.conv_in(latents)
        for block in self.mid.values():
            x = block(x)
        for level in reversed(list(self.up)):
            x = level(x)
        out: Tensor = self.conv_out(_activated(x))
        return out


def load_audio_encoder(component: Component, *, device: torch.device | str) -> AudioEncoder:
    """The encoder of an audio VAE, in float32. Raises :class:`UnknownLayout`."""
    build = partial(AudioEncoder, _coder(component))
    return load_part(component, "encoder.", build, device=device, dtype=torch.float32)


def load_audio_decoder(component: Component, *, device: torch.device | str) -> AudioDecoder:
    """The decoder of an audio VAE, in float32. Raises :class:`UnknownLayout`."""
    build = partial(AudioDecoder, _coder(component))
    return load_part(component, "decoder.", build, device=device, dtype=torch.float32)


def _coder(component: Component) -> dims.AudioCoder:
    coder = dims.audio_coder(component.shapes(), component.config)
    if coder.causality_axis != SUPPORTED_AXIS:
        raise UnknownLayout(
            f"{component.file.path.name}: an audio VAE that is causal along "
            f"{coder.causality_axis}, known is {SUPPORTED_AXIS} (time)",
            "use the audio VAE of LTX-2.0 or LTX-2.3 as published",
        )
    return coder


def _blocks(widths: Sequence[int]) -> list[nn.Module]:
    return [_Block(before, after) for before, after in pairwise(widths)]


def _mid(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({f"block_{n}": _Block(width, width) for n in (1, 2)})


def _out(conv: nn.Module, mid: nn.ModuleDict, x: Tensor) -> Tensor:
    for block in mid.values():
        x = block(x)
    out: Tensor = conv(_activated(x))
    return out


def _activated(x: Tensor) -> Tensor:
    """SiLU of the RMS norm over channels."""
    mean = x.square().mean(1, keepdim=True)
    if torch.is_grad_enabled():
        return F.silu(x * (mean + EPS).rsqrt())
    return F.silu(x * mean.add_(EPS).rsqrt_(), inplace=True)
