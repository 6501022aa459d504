"""Chunks in which sound is decoded, and the context that they need. Imports no torch."""

from __future__ import annotations

import math

from latent_ladder.models.network_configs import GeneratorConfig

CHUNK_LATENTS = {"cpu": 64}
CHUNK_LATENTS_ELSEWHERE = 125
"""Latent frames (of four mel frames) per chunk of the audio VAE, by device type. The published
decoder needs about 1 MB for each."""
CHUNK_FRAMES = 500
"""Spectrogram frames that a generator processes at once, context included: 5 s of audio in the
main generator, 2.5 s in the bandwidth extension. The published ones need 0.13 GB for it."""
FILTER_TAPS = 12
"""Taps of the filters around a snake activation."""


def generator_context(config: GeneratorConfig) -> int:
    """Context of an output sample: spectrogram frames on each side, rounded up."""
    snake = config.activation == "snakebeta"
    around = FILTER_TAPS // 2 + 1 if snake else 0
    reach, rate = 3.0, 1
    for step, kernel in zip(config.rates, config.kernels, strict=True):
        reach += kernel / step / rate
        rate *= step
        widest = max(
            sum((size - 1) // 2 * (d + 1) + 2 * around for d in dilations)
            for size, dilations in zip(config.block_kernels, config.dilations, strict=True)
        )
        reach += widest / rate
    return math.ceil(reach + (3 + around) / rate) + 1


def chunk_frames(context: int) -> int:
    """Spectrogram frames per chunk, without the ``context`` on both sides."""
    return max(CHUNK_FRAMES - 2 * context, CHUNK_FRAMES // 2)


def chunk_lengths(count: int, chunk: int, context: int) -> list[int]:
    """Length of each chunk with its context, of ``count`` values in all."""
    if count <= chunk + 2 * context:
        return [count]
    return [
        min(min(start + chunk, count) + context, count) - max(start - context, 0)
        for start in range(0, count, chunk)
    ]
