"""Vocoder: log-mel spectrograms to waveforms, always in float32; named as in the checkpoints.

The generator has transposed convolutions and residual blocks, as in HiFi-GAN (LTX-2.0: leaky
ReLU, 24 kHz) or BigVGAN (LTX-2.3: snake activations at twice the rate, to avoid aliasing). In
LTX-2.3 its 16 kHz waveform is clamped and resampled to 48 kHz, and a second generator adds the
missing high band (bandwidth extension). bfloat16 would lose 40-90 % in spectral metrics.

Long audio is generated in chunks with as much context on both sides as the layers see: equal to
the whole within rounding, in memory that does not depend on the length. Sources: BigVGAN
(arXiv 2206.04658), HiFi-GAN (arXiv 2010.05646), the vocoder of ltx-core.
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
from latent_ladder.models.audio_chunks import chunk_frames, generator_context
from latent_ladder.models.audio_vae.snake_beta import SnakeActivation
from latent_ladder.models.exact_float32 import exact_float32
from latent_ladder.models.network_configs import (
    BandwidthExtensionConfig,
    GeneratorConfig,
    bandwidth_extension_config,
    generator_config,
    shapes_below,
)
from latent_ladder.models.vae_loading import load_network

MEL_FRAMES_PER_SECOND = 100
"""Mel frames per second of all published models: 16 kHz with a hop of 160 samples."""
MEL_FLOOR = 1e-5
SLOPE, LAST_SLOPE = 0.1, 0.01


class _ResidualBlock(nn.Module):
    """Residual block: pairs of convolutions (the first dilated), each after an activation."""

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
    """Generator: spectrogram (B, in, T) to waveform (B, out, T * product of the rates)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        snake = config.activation == "snakebeta"
        width = config.hidden
        self.conv_pre = nn.Conv1d(config.in_channels, width, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.rates, config.kernels, strict=True):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding))
            width //= 2
            for size, dilations in zip(config.block_kernels, config.dilations, strict=True):
                self.resblocks.append(_ResidualBlock(width, size, dilations, snake))
        if snake:
            self.act_post = SnakeActivation(width)
        self.conv_post = nn.Conv1d(width, config.out_channels, 7, padding=3, bias=config.final_bias)

    @property
    def rate(self) -> int:
        """Samples per spectrogram frame."""
        return math.prod(self.config.rates)

    @property
    def context(self) -> int:
        """Context of an output sample: spectrogram frames on each side, rounded up."""
        return generator_context(self.config)

    def forward(self, x: Tensor) -> Tensor:
        """Generate the waveform of the whole spectrogram ``x``."""
        snake = self.config.activation == "snakebeta"
        per_stage = len(self.config.block_kernels)
        x = self.conv_pre(x)
        for number, up in enumerate(self.ups):
            x = up(x if snake else F.leaky_relu(x, SLOPE))
            first, *others = self.resblocks[number * per_stage : (number + 1) * per_stage]
            total = first(x)
            for block in others:
                total += block(x)
            x = total.div_(per_stage) if others else total
        x = self.act_post(x) if snake else F.leaky_relu(x, LAST_SLOPE)
        return _limit(self.conv_post(x), self.config.final)


def run_in_chunks(
    run: Callable[[Tensor], Tensor], x: Tensor, chunk: int, context: int, gain: int
) -> Tensor:
    """Apply ``run``, (B, C, N) to (B, D, N * gain), to ``x`` in chunks with context.

    Each chunk has ``chunk`` values and ``context`` values on each side; an input not longer than
    that is run whole. ``chunk`` and ``context`` must be multiples of the hop of ``run``, if any.
    """
    count = x.shape[-1]
    if count <= chunk + 2 * context:
        return run(x)
    out = None
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        left, right = max(start - context, 0), min(stop + context, count)
        output = run(x[..., left:right])
        if out is None:
            out = output.new_empty((*output.shape[:-1], count * gain))
        inner = slice((start - left) * gain, (stop - left) * gain)
        out[..., start * gain : stop * gain] = output[..., inner]
    assert out is not None
    return out


_BOUNDS: Mapping[str | None, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "clamp": lambda x: x.clamp(-1, 1),
    None: lambda x: x,
}


def _limit(x: Tensor, final: str | None) -> Tensor:
    return _BOUNDS[final](x)


class _Stft(nn.Module):
    """Short-time Fourier transform as a convolution with the basis in the checkpoint."""

    def __init__(self, extension: BandwidthExtensionConfig) -> None:
        super().__init__()
        self.forward_basis: Tensor
        shape = (2 * (extension.n_fft // 2 + 1), 1, extension.n_fft)
        for name in ("forward_basis", "inverse_basis"):
            self.register_buffer(name, torch.empty(shape))


class _MelStft(nn.Module):
    """Causal log-mel spectrogram: waveform (B, N) to (B, mels, N / hop)."""

    def __init__(self, extension: BandwidthExtensionConfig) -> None:
        super().__init__()
        self.hop, self.window = extension.hop, extension.window
        self.mel_basis: Tensor
        self.register_buffer("mel_basis", torch.empty(extension.mels, extension.n_fft // 2 + 1))
        self.stft_fn = _Stft(extension)

    def forward(self, waveform: Tensor) -> Tensor:
        padded = F.pad(waveform[:, None], (max(0, self.window - self.hop), 0))
        real, imaginary = F.conv1d(padded, self.stft_fn.forward_basis, stride=self.hop).chunk(2, 1)
        return (self.mel_basis @ torch.hypot(real, imaginary)).clamp(min=MEL_FLOOR).log()


class _VocoderWithExtension(nn.Module):
    """Vocoder of LTX-2.3: two generators and the spectrogram between them."""

    def __init__(self, main: GeneratorConfig, extension: BandwidthExtensionConfig) -> None:
        super().__init__()
        self.vocoder = Generator(main)
        self.bwe_generator = Generator(extension.generator)
        self.mel_stft = _MelStft(extension)


@dataclass(frozen=True)
class Vocoder:
    """Loaded vocoder. For LTX-2.0 ``bwe_generator``, ``mel_stft`` and ``extension`` are None."""

    main: Generator
    bwe_generator: Generator | None
    mel_stft: nn.Module | None
    extension: BandwidthExtensionConfig | None
    sample_rate: int


@torch.no_grad()
def vocode(vocoder: Vocoder, mel: Tensor) -> Tensor:
    """Convert log-mel (B, 2, T, 64) to a waveform (B, 2, S) in -1..1, float32.

    Its sample rate is ``vocoder.sample_rate``.
    """
    # A bfloat16 autocast around the caller must not apply here.
    with torch.autocast(mel.device.type, enabled=False), exact_float32():
        low = vocode_low_band(vocoder, mel)
        extension = vocoder.extension
        if extension is None or vocoder.bwe_generator is None or vocoder.mel_stft is None:
            return low
        samples, hop = low.shape[-1], extension.hop
        # The spectrogram needs one window of context before a frame.
        context = vocoder.bwe_generator.context + math.ceil(extension.window / hop)
        extended = run_in_chunks(
            partial(_extend_bandwidth, vocoder.bwe_generator, vocoder.mel_stft, extension),
            F.pad(low, (0, -samples % hop)),
            chunk_frames(context) * hop,
            context * hop,
            extension.gain,
        )
        return extended[..., : samples * extension.gain]


@torch.no_grad()
def vocode_low_band(vocoder: Vocoder, mel: Tensor) -> Tensor:
    """Waveform (B, 2, S) of the main generator, before bandwidth extension."""
    main = vocoder.main
    with torch.autocast(mel.device.type, enabled=False), exact_float32():
        x = mel.float().transpose(2, 3).flatten(1, 2)
        return run_in_chunks(main, x, chunk_frames(main.context), main.context, main.rate)


def _extend_bandwidth(
    generator: Generator, mel_stft: nn.Module, extension: BandwidthExtensionConfig, low: Tensor
) -> Tensor:
    """Extend the bandwidth of ``low`` (B, C, N): upsample it and add the generated high band."""
    mel = mel_stft(low.flatten(0, 1)).unflatten(0, low.shape[:2]).flatten(1, 2)
    high: Tensor = generator(mel)
    return high.add_(upsample_sinc(low, extension.gain)).clamp_(-1, 1)


def upsample_sinc(waveform: Tensor, factor: int) -> Tensor:
    """Upsample (B, C, N) to (B, C, N * factor) with a sinc filter: 6 crossings, cosine window.

    The ends are padded with their last sample. Roll-off 0.99, as in the reference.
    """
    rolloff, crossings = 0.99, 6
    width = math.ceil(crossings / rolloff)
    taps = 2 * width * factor + 1
    time = (torch.arange(taps, dtype=torch.float32) / factor - width) * rolloff
    window = torch.cos(time.clamp(-crossings, crossings) * math.pi / crossings / 2) ** 2
    kernel = (torch.sinc(time) * window * rolloff / factor).to(waveform)[None, None]
    batch, channels, count = waveform.shape
    flat = F.pad(waveform.reshape(-1, 1, count), (width, width), mode="replicate")
    upsampled = factor * F.conv_transpose1d(flat, kernel, stride=factor)
    start = 2 * width * factor
    return upsampled[..., start : start + count * factor].reshape(batch, channels, -1)


def load_vocoder(component: Component, *, device: torch.device | str) -> Vocoder:
    """Load a vocoder, always in float32; raises :class:`UnknownLayout` for an unsupported one."""
    shapes, config = component.shapes(), component.config
    extension = bandwidth_extension_config(shapes, config)
    load = partial(load_network, component, "", device=device, dtype=torch.float32)
    if extension is None:
        main = generator_config(shapes, config, last="clamp")
        generator = load(partial(Generator, main))
        return Vocoder(generator, None, None, None, _output_rate(main))
    section = config.get("vocoder", {})
    main = generator_config(shapes_below(shapes, "vocoder."), section, last="clamp")
    if extension.input_rate != _output_rate(main):
        raise UnknownLayout(
            f"vocoder: the main generator outputs {_output_rate(main)} Hz, the bandwidth extension "
            f"expects {extension.input_rate} Hz"
        )
    network = load(partial(_VocoderWithExtension, main, extension))
    return Vocoder(
        network.vocoder, network.bwe_generator, network.mel_stft, extension, extension.output_rate
    )


def _output_rate(main: GeneratorConfig) -> int:
    return MEL_FRAMES_PER_SECOND * math.prod(main.rates)
