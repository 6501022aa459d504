"""Predicted memory and FLOPs of decoding sound: audio VAE and vocoder. Pure numbers, no device.

Both are loaded together and compute in float32, in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from latent_ladder.checkpoints.components import Component
from latent_ladder.models.audio_chunks import (
    CHUNK_LATENTS,
    CHUNK_LATENTS_ELSEWHERE,
    FILTER_TAPS,
    chunk_frames,
    chunk_lengths,
    generator_context,
)
from latent_ladder.models.network_configs import (
    AudioVaeConfig,
    BandwidthExtensionConfig,
    GeneratorConfig,
    audio_vae_config,
    bandwidth_extension_config,
    generator_config,
    shapes_below,
)

FLOAT32 = 4
MELS_PER_LATENT = 4
DECODER_TENSORS = 4
"""Tensors in memory at once in the last upsampling of the audio VAE: what is repeated, the padded
input of the convolution, its output, and stored rows."""
GENERATOR_TENSORS = 9
"""Tensors of the size of a stage in memory at once in the vocoder: the stage's input and sum, a
block's input, and the activation at twice the rate with its copies."""


@dataclass(frozen=True)
class SoundSizes:
    """Decoders of sound: the configurations, and ``values``, the numbers of all weights."""

    vae: AudioVaeConfig
    main: GeneratorConfig
    extension: BandwidthExtensionConfig | None
    values: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of both networks, in float32."""
        return FLOAT32 * self.values


def sound_sizes(parts: Mapping[str, Component]) -> SoundSizes | None:
    """Sizes from the headers of audio VAE and vocoder; ``None`` if one is absent."""
    vae, vocoder = parts.get("audio_vae"), parts.get("vocoder")
    if vae is None or vocoder is None:
        return None
    shapes, header = vocoder.shapes(), vocoder.config
    extension = bandwidth_extension_config(shapes, header)
    if extension is not None:
        own, header = shapes_below(shapes, "vocoder."), header.get("vocoder", {})
    else:
        own = shapes
    decoder = [s for key, s in vae.shapes().items() if not key.startswith("encoder.")]
    return SoundSizes(
        audio_vae_config(vae.shapes(), vae.config),
        generator_config(own, header, last="clamp"),
        extension,
        sum(math.prod(shape) for shape in (*decoder, *shapes.values())),
    )


def sound_activations(sound: SoundSizes, latents: int, device: str = "cuda") -> int:
    """Peak bytes of the activations of decoding ``latents`` audio latents."""
    vae, chunk = sound.vae, CHUNK_LATENTS.get(device, CHUNK_LATENTS_ELSEWHERE)
    widest = vae.base * vae.multipliers[min(1, len(vae.multipliers) - 1)]
    rows = MELS_PER_LATENT * min(latents, chunk)
    decoding = DECODER_TENSORS * rows * vae.mel_bins * widest
    frames = _mel_frames(latents)
    generating = _generator_values(sound.main, frames, generator_context(sound.main))
    if (extension := sound.extension) is not None:
        frames = math.ceil(frames * math.prod(sound.main.rates) / extension.hop)
        context = _extension_context(extension)
        generating = max(generating, _generator_values(extension.generator, frames, context))
    return FLOAT32 * max(decoding, GENERATOR_TENSORS * generating)


def _generator_values(config: GeneratorConfig, frames: int, context: int) -> int:
    """Values of the largest stage of a generator for a chunk."""
    longest = max(chunk_lengths(frames, chunk_frames(context), context))
    width, length, most = config.hidden, 1, 0
    for rate in config.rates:
        width, length = width // 2, length * rate
        most = max(most, width * length)
    return most * longest


def sound_flops(sound: SoundSizes, latents: int) -> float:
    """FLOPs of the convolutions of decoding ``latents`` audio latents to a waveform."""
    frames = _mel_frames(latents)
    context = generator_context(sound.main)
    lengths = chunk_lengths(frames, chunk_frames(context), context)
    total = _decoder_flops(sound.vae, latents)
    total += sum(_generator_flops(sound.main, n) for n in lengths)
    if (extension := sound.extension) is None:
        return total
    frames = math.ceil(frames * math.prod(sound.main.rates) / extension.hop)
    context = _extension_context(extension)
    bins = extension.n_fft // 2 + 1
    for n in chunk_lengths(frames, chunk_frames(context), context):
        spectrum = 2 * bins * extension.n_fft + extension.mels * bins
        total += 2.0 * 2 * n * spectrum + _generator_flops(extension.generator, n)
    return total


def _mel_frames(latents: int) -> int:
    return MELS_PER_LATENT * latents - (MELS_PER_LATENT - 1)


def _extension_context(extension: BandwidthExtensionConfig) -> int:
    """Context of the bandwidth extension: the generator's and a window of the spectrogram."""
    return generator_context(extension.generator) + math.ceil(extension.window / extension.hop)


def _decoder_flops(config: AudioVaeConfig, latents: int) -> float:
    """FLOPs of the audio VAE's decoder; each upsampling drops its first row."""
    widths = [config.base * multiplier for multiplier in config.multipliers]
    levels = len(widths)
    rows, bands = latents, config.mel_bins >> (levels - 1)
    width = widths[-1]
    total = 9 * rows * bands * (config.latent_channels * width + 4 * width**2)
    for number in reversed(range(levels)):
        level = [width, *[widths[number]] * (config.blocks + 1)]
        for before, after in pairwise(level):
            shortcut = before * after if before != after else 0
            total += rows * bands * (9 * after * (before + after) + shortcut)
        width = widths[number]
        if number:
            rows, bands = 2 * rows, 2 * bands
            total += 9 * rows * bands * width**2
            rows -= 1
    total += 9 * rows * bands * width * config.mel_channels
    return 2.0 * total


def _generator_flops(config: GeneratorConfig, frames: int) -> float:
    """FLOPs of a generator for a chunk of ``frames`` spectrogram frames."""
    width, length = config.hidden, frames
    total = 7 * config.in_channels * width * length
    # A snake activation filters at twice the rate, on the way up and down.
    filters = 2 * FILTER_TAPS if config.activation == "snakebeta" else 0
    for rate, kernel in zip(config.rates, config.kernels, strict=True):
        total += width * (width // 2) * kernel * length
        length = (length - 1) * rate - 2 * ((kernel - rate) // 2) + kernel
        width //= 2
        for size, dilations in zip(config.block_kernels, config.dilations, strict=True):
            total += 2 * len(dilations) * length * width * (width * size + filters)
    total += length * width * (7 * config.out_channels + filters)
    return 2.0 * total
