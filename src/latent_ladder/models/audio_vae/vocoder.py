"""The vocoder: log-mel spectrograms to waveforms, under the files' own names, always in float32.

A generator of transposed convolutions and residual blocks in the manner of HiFi-GAN (LTX-2.0: leaky
ReLU, 24 kHz) or BigVGAN (LTX-2.3: snake activations on twice the rate, so that their overtones do
not fold back). In 2.3 its 16 kHz waveform is clamped, resampled to 48 kHz, and a second generator
adds the band that is missing. bfloat16 would cost 40-90 % in spectral metrics.

Long sounds are made in pieces with as much context on both sides as the layers see: equal to
the whole within rounding, in memory that does not grow. Sources: BigVGAN (arXiv 2206.04658),
HiFi-GAN (arXiv 2010.05646), the vocoder of ltx-core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models import network_configs as dims
from latent_ladder.models.audio_vae.snake_beta import FILTER_TAPS, SnakeActivation
from latent_ladder.models.vae_loading import load_part

MEL_FRAMES_PER_SECOND = 100
"""16 kHz at a hop of 160, in every published model."""
PIECE_FRAMES = 500
"""Spectrogram frames that a generator sees at once, those around a piece included: 5 s of sound
in the main generator, 2.5 s in the extension. The published ones take 0.13 GB for it."""
MEL_FLOOR = 1e-5
SLOPE, LAST_SLOPE = 0.1, 0.01


class _Residual(nn.Module):
    """Pairs of convolutions, the first of each dilated, each after an activation."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...], snake: bool) -> None:
        super().__init__()
        count = len(dilations)
        reach = kernel - 1
        self.convs1 = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=d, padding=reach * d // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=reach // 2) for _ in range(count)
        )
        if snake:
            self.acts1 = nn.ModuleList(SnakeActivation(width) for _ in range(count))
            self.acts2 = nn.ModuleList(SnakeActivation(width) for _ in range(count))
        self.snake = snake

    def forward(self, x: Tensor) -> Tensor:
        for number, (first, second) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            y = first(self._act(1, number, x))
            x = second(self._act(2, number, y)).add_(x)
        return x

    def _act(self, which: int, number: int, x: Tensor) -> Tensor:
        if not self.snake:
            return F.leaky_relu(x, SLOPE)
        activations = cast(nn.ModuleList, self._modules[f"acts{which}"])
        return cast(Tensor, activations[number](x))


class Generator(nn.Module):
    """Spectrogram (B, in, T) -> waveform (B, out, T * product of the rates)."""

    def __init__(self, shape: dims.WaveGenerator) -> None:
        super().__init__()
        self.shape = shape
        snake = shape.activation == "snakebeta"
        width = shape.hidden
        self.conv_pre = nn.Conv1d(shape.in_channels, width, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(shape.rates, shape.kernels, strict=True):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding))
            width //= 2
            for size, dilations in zip(shape.block_kernels, shape.dilations, strict=True):
                self.resblocks.append(_Residual(width, size, dilations, snake))
        if snake:
            self.act_post = SnakeActivation(width)
        self.conv_post = nn.Conv1d(width, shape.out_channels, 7, padding=3, bias=shape.final_bias)

    @property
    def rate(self) -> int:
        """Samples per spectrogram frame."""
        return math.prod(self.shape.rates)

    @property
    def context(self) -> int:
        """Spectrogram frames on each side that a sample depends on, rounded up."""
        snake = self.shape.activation == "snakebeta"
        around = FILTER_TAPS // 2 + 1 if snake else 0
        reach, rate = 3.0, 1
        for step, kernel in zip(self.shape.rates, self.shape.kernels, strict=True):
            reach += kernel / step / rate
            rate *= step
            widest = max(
                sum((size - 1) // 2 * (d + 1) + 2 * around for d in dilations)
                for size, dilations in zip(
                    self.shape.block_kernels, self.shape.dilations, strict=True
                )
            )
            reach += widest / rate
        return math.ceil(reach + (3 + around) / rate) + 1

    def forward(self, x: Tensor) -> Tensor:
        """The whole at once."""
        snake = self.shape.activation == "snakebeta"
        per_stage = len(self.shape.block_kernels)
        x = self.conv_pre(x)
        for number, up in enumerate(self.ups):
            x = up(x if snake else F.leaky_relu(x, SLOPE))
            first, *others = self.resblocks[number * per_stage : (number + 1) * per_stage]
            total = first(x)
            for block in others:
                total += block(x)
            x = total.div_(per_stage) if others else total
        x = self.act_post(x) if snake else F.leaky_relu(x, LAST_SLOPE)
        return _bounded(self.conv_post(x), self.shape.final)


def in_pieces(
    run: Callable[[Tensor], Tensor], x: Tensor, piece: int, context: int, gain: int
) -> Tensor:
    """``run`` (B, C, N) -> (B, D, N * gain), about ``piece`` values at a time, ``context`` around.

    A sound not longer than a piece with its context is run whole; how others are cut depends on
    their length alone. ``piece`` and ``context`` keep to a grid that ``run`` has.
    """
    count = x.shape[-1]
    if count <= piece + 2 * context:
        return run(x)
    out = None
    for start in range(0, count, piece):
        stop = min(start + piece, count)
        left, right = max(start - context, 0), min(stop + context, count)
        made = run(x[..., left:right])
        if out is None:
            out = made.new_empty((*made.shape[:-1], count * gain))
        kept = slice((start - left) * gain, (stop - left) * gain)
        out[..., start * gain : stop * gain] = made[..., kept]
    assert out is not None
    return out


def _piece(context: int) -> int:
    """How many spectrogram frames are made sound of at a time, with ``context`` on both sides."""
    return max(PIECE_FRAMES - 2 * context, PIECE_FRAMES // 2)


_BOUNDS: Mapping[str | None, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "clamp": lambda x: x.clamp(-1, 1),
    None: lambda x: x,
}


def _bounded(x: Tensor, final: str | None) -> Tensor:
    return _BOUNDS[final](x)


class _Stft(nn.Module):
    """A windowed Fourier transform as a convolution with the file's own basis."""

    def __init__(self, extension: dims.BandwidthExtension) -> None:
        super().__init__()
        self.forward_basis: Tensor
        shape = (2 * (extension.n_fft // 2 + 1), 1, extension.n_fft)
        for name in ("forward_basis", "inverse_basis"):
            self.register_buffer(name, torch.empty(shape))


class _MelStft(nn.Module):
    """Waveform (B, N) -> log-mel (B, mels, N / hop), looking back only."""

    def __init__(self, extension: dims.BandwidthExtension) -> None:
        super().__init__()
        self.hop, self.window = extension.hop, extension.window
        self.mel_basis: Tensor
        self.register_buffer("mel_basis", torch.empty(extension.mels, extension.n_fft // 2 + 1))
        self.stft_fn = _Stft(extension)

    def forward(self, waveform: Tensor) -> Tensor:
        padded = F.pad(waveform[:, None], (max(0, self.window - self.hop), 0))
        real, imaginary = F.conv1d(padded, self.stft_fn.forward_basis, stride=self.hop).chunk(2, 1)
        return (self.mel_basis @ torch.hypot(real, imaginary)).clamp(min=MEL_FLOOR).log()


class _WithExtension(nn.Module):
    """Both generators of LTX-2.3 and the spectrogram between them."""

    def __init__(self, main: dims.WaveGenerator, extension: dims.BandwidthExtension) -> None:
        super().__init__()
        self.vocoder = Generator(main)
        self.bwe_generator = Generator(extension.generator)
        self.mel_stft = _MelStft(extension)


@dataclass(frozen=True)
class Vocoder:
    """Mel frames -> waveform. ``extension`` is None for the one-stage vocoder of LTX-2.0."""

    main: Generator
    wide: Generator | None
    bands: nn.Module | None
    extension: dims.BandwidthExtension | None
    sample_rate: int


@torch.no_grad()
def vocode(vocoder: Vocoder, mel: Tensor) -> Tensor:
    """Log-mel (B, 2, T, 64) -> waveform (B, 2, S) at ``vocoder.sample_rate``, float32, -1..1."""
    # bfloat16 autocast around a whole stage must not reach in here.
    with torch.autocast(mel.device.type, enabled=False):
        low = low_band(vocoder, mel)
        extension = vocoder.extension
        if extension is None or vocoder.wide is None or vocoder.bands is None:
            return low
        samples, hop = low.shape[-1], extension.hop
        # The spectrogram looks back by a window.
        context = vocoder.wide.context + math.ceil(extension.window / hop)
        wide = in_pieces(
            partial(_widened, vocoder.wide, vocoder.bands, extension),
            F.pad(low, (0, -samples % hop)),
            _piece(context) * hop,
            context * hop,
            extension.gain,
        )
        return wide[..., : samples * extension.gain]


@torch.no_grad()
def low_band(vocoder: Vocoder, mel: Tensor) -> Tensor:
    """The waveform before bandwidth extension, at the extension's input rate."""
    main = vocoder.main
    with torch.autocast(mel.device.type, enabled=False):
        x = mel.float().transpose(2, 3).flatten(1, 2)
        return in_pieces(main, x, _piece(main.context), main.context, main.rate)


def _widened(
    generator: Generator, bands: nn.Module, extension: dims.BandwidthExtension, low: Tensor
) -> Tensor:
    """(B, C, N) -> (B, C, N * gain): the low band interpolated, and the band above it added."""
    mel = bands(low.flatten(0, 1)).unflatten(0, low.shape[:2]).flatten(1, 2)
    high: Tensor = generator(mel)
    return high.add_(interpolated(low, extension.gain)).clamp_(-1, 1)


def interpolated(waveform: Tensor, factor: int) -> Tensor:
    """(B, C, N) -> (B, C, N * factor): band-limited, a sinc of 6 crossings under a cosine window.

    Ends are continued with their last sample. Roll-off 0.99, as in the reference.
    """
    rolloff, crossings = 0.99, 6
    width = math.ceil(crossings / rolloff)
    taps = 2 * width * factor + 1
    time = (torch.arange(taps, dtype=torch.float32) / factor - width) * rolloff
    window = torch.cos(time.clamp(-crossings, crossings) * math.pi / crossings / 2) ** 2
    kernel = (torch.sinc(time) * window * rolloff / factor).to(waveform)[None, None]
    batch, channels, count = waveform.shape
    flat = F.pad(waveform.reshape(-1, 1, count), (width, width), mode="replicate")
    spread = factor * F.conv_transpose1d(flat, kernel, stride=factor)
    start = 2 * width * factor
    return spread[..., start : start + count * factor].reshape(batch, channels, -1)


def load_vocoder(component: Component, *, device: torch.device | str) -> Vocoder:
    """A vocoder, always float32. Raises :class:`UnknownLayout`."""
    shapes, config = component.shapes(), component.config
    extension = dims.bandwidth_extension(shapes, config)
    load = partial(load_part, component, "", device=device, dtype=torch.float32)
    if extension is None:
        main = dims.wave_generator(shapes, config, last="clamp")
        generator = load(partial(Generator, main))
        return Vocoder(generator, None, None, None, _rate(main))
    section = config.get("vocoder", {})
    main = dims.wave_generator(dims.below(shapes, "vocoder."), section, last="clamp")
    if extension.input_rate != _rate(main):
        raise UnknownLayout(
            f"vocoder: its first stage gives {_rate(main)} Hz, its extension takes "
            f"{extension.input_rate}"
        )
    network = load(partial(_WithExtension, main, extension))
    return Vocoder(
        network.vocoder, network.bwe_generator, network.mel_stft, extension, extension.output_rate
    )


def _rate(main: dims.WaveGenerator) -> int:
    return MEL_FRAMES_PER_SECOND * math.prod(main.rates)
