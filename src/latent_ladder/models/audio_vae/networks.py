"""The networks of the audio VAE: log-mel spectrograms <-> latents, under the files' own names.

Two-dimensional convolutions over (time, mel band) that never look ahead in time: every kernel is
padded in front of its first row. Two resamplings make one latent of four mel frames; the first
mel frame has a latent of its own. Norms are RMS over channels at each position, without weights.

A sound passes in pieces, between which each convolution keeps its last two rows: exactly what the
whole would give, in memory that does not grow with its length. For inference only, activations are
overwritten. Source: the audio autoencoder of ltx-core (``audio_vae``).
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
from latent_ladder.models import network_configs as dims
from latent_ladder.models.vae_loading import load_part
from latent_ladder.models.video_vae.causal_layers import Carry

EPS = 1e-6
SUPPORTED_AXIS = "height"
"""The axis that is causal in every published file: time, the first of a spectrogram's two."""
PIECE_LATENTS = {"cpu": 64}
PIECE_LATENTS_ELSEWHERE = 125
"""Latents, of four mel frames each, that are worked on at once, by device type. The published
decoder takes about 1 MB for each."""
MELS_PER_LATENT = 4


class _CausalConv(nn.Module):
    """A convolution padded in front in time, and on both sides in frequency.

    With ``activate`` of the SiLU of its input over the root mean square along the channels.
    """

    def __init__(self, before: int, after: int, kernel: int = 3) -> None:
        super().__init__()
        self.reach = kernel - 1
        self.conv = nn.Conv2d(before, after, kernel, padding=(0, self.reach // 2))

    def forward(self, x: Tensor, carry: Carry, activate: bool = False) -> Tensor:
        if not self.reach:
            return cast(Tensor, self.conv(x))
        joined, now = _behind(self, x, self.reach, carry)
        if activate:
            mean = x.square().mean(1, keepdim=True)
            torch.mul(x, mean.add_(EPS).rsqrt_(), out=now)
            F.silu(now, inplace=True)
        else:
            now.copy_(x)
        carry.hold(self, joined[:, :, -self.reach :])
        return cast(Tensor, self.conv(joined))


class _Block(nn.Module):
    """Two convolutions, each after norm and SiLU, beside a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = _CausalConv(before, after)
        self.conv2 = _CausalConv(after, after)
        self.nin_shortcut = _CausalConv(before, after, 1) if before != after else None

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x, carry, True), carry, True)
        return y.add_(x if self.nin_shortcut is None else self.nin_shortcut(x, carry))


class _Down(nn.Module):
    """Half the time and half the bands. All pieces but the last have an even length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        joined, now = _behind(self, x, 2, carry, 1)
        now.copy_(x)
        carry.hold(self, joined[:, :, -2:, :-1])
        return cast(Tensor, self.conv(joined))


class _Up(nn.Module):
    """Twice the time, less the first frame's copy, and twice the bands."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _CausalConv(width, width)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), carry)
        return out[:, :, 1:] if carry.begins(self, out) else out


class _Level(nn.Module):
    """Blocks of one resolution and the resampling after them."""

    def __init__(self, blocks: Sequence[nn.Module], name: str, after: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.after = name
        if after is not None:
            self.add_module(name, after)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        for block in self.block:
            x = block(x, carry)
        after = self._modules.get(self.after)
        return x if after is None else cast(Tensor, after(x, carry))


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

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """Encode a spectrogram, piece by piece."""
        return _in_pieces(self._piece, mel, MELS_PER_LATENT)

    def _piece(self, mel: Tensor, carry: Carry) -> Tensor:
        x = self.conv_in(mel, carry)
        for layer in (*self.down, *self.mid.values()):
            x = layer(x, carry)
        return cast(Tensor, self.conv_out(x, carry, True))


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

    @torch.no_grad()
    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents, piece by piece."""
        return _in_pieces(self._piece, latents, 1)

    def _piece(self, latents: Tensor, carry: Carry) -> Tensor:
        x = self.conv_in(latents, carry)
        for layer in (*self.mid.values(), *reversed(self.up)):
            x = layer(x, carry)
        return cast(Tensor, self.conv_out(x, carry, True))


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


def _in_pieces(run: Callable[[Tensor, Carry], Tensor], x: Tensor, rows: int) -> Tensor:
    """``run`` on (B, C, T, M) in pieces of as many latents, ``rows`` of ``x`` each, as fit."""
    latents = PIECE_LATENTS.get(x.device.type, PIECE_LATENTS_ELSEWHERE)
    carry, made = Carry(), []
    pieces = torch.split(x, latents * rows, dim=2)
    for number, piece in enumerate(pieces):
        carry.last = number == len(pieces) - 1
        made.append(run(piece, carry))
    return torch.cat(made, 2)


def _behind(
    layer: nn.Module, x: Tensor, rows: int, carry: Carry, columns: int = 0
) -> tuple[Tensor, Tensor]:
    """Space for ``x`` behind the last ``rows`` that ``layer`` saw, zeros before a sound begins.

    Gives the whole and the part that ``x`` belongs into; ``columns`` of zeros follow the bands.
    """
    batch, channels, count, bands = x.shape
    whole = x.new_empty((batch, channels, rows + count, bands + columns))
    before = carry.held(layer)
    whole[:, :, :rows, :bands] = 0 if before is None else before
    whole[..., bands:] = 0
    return whole, whole[:, :, rows:, :bands]
