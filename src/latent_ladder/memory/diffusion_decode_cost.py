"""Predicted FLOPs of the diffusion decoder of LTX-2.5. Pure numbers, no device.

Frames stream through its blocks in chunks, a chunk in bands of rows, and the queries of a band in
tiles that share their keys. Keys are computed for the whole window of a band, so some positions
count more than once; this follows the chunks, bands and tiles of the network itself.
"""

from __future__ import annotations

import math

from latent_ladder.models.diffusion_decoder_config import (
    BAND_VALUES,
    BAND_VALUES_ELSEWHERE,
    CHUNK_FRAMES,
    GHOSTS,
    QUERY_TILE,
    DiffusionDecoderConfig,
    Size,
    band_rows,
    window_range,
)


def diffusion_flops(
    config: DiffusionDecoderConfig, latents: Size, steps: int | None = None, device: str = "cuda"
) -> float:
    """FLOPs of decoding latents (frames, rows, columns) as a whole, in ``steps`` (the model's)."""
    padded, last = config.padded(latents), len(config.strides)
    ghosts = (padded[0] + GHOSTS, padded[1], padded[2])
    total = config.latent_channels * config.channels[0] * math.prod(ghosts)
    for stage in range(last):
        size = config.grid(ghosts, stage)
        total += _blocks(config, stage, size, device)
        gain = math.prod(config.strides[stage])
        total += math.prod(size) * config.channels[stage] * config.channels[stage + 1] * gain
    size, width = config.grid(padded, last), config.channels[last]
    pixels = 3 * config.patch**2
    step = _blocks(config, last, size, device)
    step += config.depths[last] * math.prod(size) * width**2  # the context
    step += 2 * math.prod(size) * pixels * width
    return 2.0 * (total + (steps or config.steps) * step)


def _blocks(config: DiffusionDecoderConfig, stage: int, grid: Size, device: str) -> int:
    """Multiply-adds of all blocks of a stage of size ``grid``."""
    frames, rows, cols = grid
    kernel, width, inner = config.kernels[stage], config.channels[stage], config.inner[stage]
    budget = BAND_VALUES.get(device, BAND_VALUES_ELSEWHERE)
    total = 0
    for start in range(0, frames, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, frames)
        low, high = window_range(start, stop, frames, kernel[0])
        step = band_rows(budget, (high - low) * cols * width, kernel[1])
        for top in range(0, rows, step):
            bottom = min(top + step, rows)
            above, below = window_range(top, bottom, rows, kernel[1])
            queries = (stop - start) * (bottom - top) * cols
            keys = (high - low) * (below - above) * cols
            total += queries * width * (2 * width + 3 * inner) + keys * 2 * width**2
            pairs = math.prod(
                _pairs(n, m, k, tile)
                for n, m, k, tile in zip(
                    (stop - start, bottom - top, cols),
                    (high - low, below - above, cols),
                    kernel,
                    QUERY_TILE,
                    strict=True,
                )
            )
            total += 2 * pairs * width
    return config.depths[stage] * total


def _pairs(queries: int, keys: int, kernel: int, tile: int) -> int:
    """Pairs of a query and a key that are computed along an axis; the last tile overlaps."""
    size = min(tile, queries)
    return -(-queries // size) * size * min(size + kernel - 1, keys)
