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

from latent_ladder.checkpoints.layout import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models import networks_dims as dims
from latent_ladder.models.parts import load_part

MEL_FRAMES_PER_SECOND = 100
"""16 kHz at a hop of 160, in every published model."""
CHUNK_FRAMES = 600
"""Spectrogram frames that a generator makes sound of at a time."""
MEL_FLOOR = 1e-5
FILTER_TAPS = 12
SLOPE, LAST_SLOPE = 0.1, 0.01


class _Filter(nn.Module):
    """A low-pass filter as a buffer of the file, (1, 1, taps)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter: Tensor
        self.register_buffer("filter", torch.empty(1, 1, FILTER_TAPS))


class _Down(nn.Module):
    """Where the files keep the second filter of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = _Filter()


class _Snake(nn.Module):
    """``x + sin^2(a x) / b`` with logarithms of a and b per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(width))
        self.beta = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, N) to the same."""
        a, b = (p.exp()[:, None] for p in (self.alpha, self.beta))
        if torch.is_grad_enabled():
            return x + (x * a).sin().square() / (b + 1e-9)
        return x + (x * a).sin_().square_().div_(b + 1e-9)


class SnakeActivation(nn.Module):
    """A snake on twice the rate: up by 2, activate, down by 2, both with the file's filters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.act = _Snake(width)
        self.upsample = _Filter()
        self.downsample = _Down()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, N) to the same."""
        return self._down(self.act(self._up(x)))

    def _up(self, x: Tensor) -> Tensor:
        width, edge = x.shape[1], FILTER_TAPS // 2 - 1
        padded = F.pad(x, (edge, edge), mode="replicate")
        kernel = 2 * self.upsample.filter.expand(width, -1, -1)
        y = F.conv_transpose1d(padded, kernel, stride=2, groups=width)
        cut = 3 * edge  # what the padding became, and half of the filter
        return y[..., cut:-cut]

    def _down(self, x: Tensor) -> Tensor:
        width, half = x.shape[1], FILTER_TAPS // 2
        padded = F.pad(x, (half - 1, half), mode="replicate")
        kernel = self.downsample.lowpass.filter.expand(width, -1, -1)
        return F.conv1d(padded, kernel, stride=2, groups=width)


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
            x = x + second(self._act(2, number, y))
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
            blocks = self.resblocks[number * per_stage : (number + 1) * per_stage]
            total = blocks[0](x)
            for block in list(blocks)[1:]:
                total = total + block(x)
            x = total / per_stage
        x = self.act_post(x) if snake else F.leaky_relu(x, LAST_SLOPE)
        return _bounded(self.conv_post(x), self.shape.final)

    def in_pieces(self, x: Tensor, chunk: int = CHUNK_FRAMES) -> Tensor:
        """As :meth:`forward`, in pieces where the spectrogram is longer than a chunk and its
        context."""
        return in_pieces(self, x, chunk, self.context, self.rate)


def in_pieces(
    run: Callable[[Tensor], Tensor], x: Tensor, chunk: int, context: int, rate: int
) -> Tensor:
    """``run`` (B, C, T) -> (B, D, T * rate), ``chunk`` frames at a time with ``context`` around."""
    frames = x.shape[-1]
    if frames <= chunk + 2 * context:
        return run(x)
    parts = []
    for start in range(0, frames, chunk):
        stop = min(start + chunk, frames)
        left, right = max(start - context, 0), min(stop + context, frames)
        made = run(x[..., left:right])
        parts.append(made[..., (start - left) * rate : (stop - left) * rate].clone())
    return torch.cat(parts, -1)


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
        batch, channels, samples = low.shape
        padded = F.pad(low, (0, -samples % extension.hop))
        bands = vocoder.bands(padded.flatten(0, 1)).unflatten(0, (batch, channels))
        high = vocoder.wide.in_pieces(bands.flatten(1, 2))
        factor = extension.output_rate // extension.input_rate
        wide = high.add_(interpolated(padded, factor)).clamp_(-1, 1)
        return wide[..., : samples * factor]


@torch.no_grad()
def low_band(vocoder: Vocoder, mel: Tensor) -> Tensor:
    """The waveform before bandwidth extension, at the extension's input rate."""
    with torch.autocast(mel.device.type, enabled=False):
        return vocoder.main.in_pieces(mel.float().transpose(2, 3).flatten(1, 2))


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
