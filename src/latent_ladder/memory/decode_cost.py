"""Predicted memory and FLOPs of decoding a clip. Pure numbers, no device."""

from __future__ import annotations

import math

from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, Resolution
from latent_ladder.memory.diffusion_decode_cost import diffusion_flops
from latent_ladder.memory.model_sizes import ModelSizes
from latent_ladder.models.diffusion_decoder_config import (
    ATTENTION_VALUES,
    ATTENTION_VALUES_ELSEWHERE,
    BAND_VALUES,
    BAND_VALUES_ELSEWHERE,
    held_values,
)
from latent_ladder.models.network_configs import CHUNK_VALUES, CHUNK_VALUES_ELSEWHERE
from latent_ladder.request.output import Decode

CHUNK_TENSORS, FRAME_TENSORS = 8.5, 5.25
"""Tensors in memory at once of the size of a chunk, and of one of its frames (what a convolution
keeps for the next chunk); counted on a pretended GPU for 720p, 1080p and 1440p."""
BLOCK_TENSORS = 12
"""Tensors of a band's size in memory at once in a block of the diffusion decoder."""
BAND_BYTES = 12
"""Per pixel of each frame of a band of blended tiles: float32 RGB."""


def decode_activations(
    last: Resolution,
    decode: Decode,
    sizes: ModelSizes,
    device: str = "cuda",
    *,
    frames_in_ram: bool = False,
) -> int:
    """Peak bytes of decoding a clip of resolution ``last``, whole or in tiles.

    A diffusion decoder may keep the frames between its blocks in RAM.
    A tile needs what the decoder caches for its part of a frame. The blended bands of tiles come on
    top of that, two at a time where spans of time overlap. Tiles of a grid are decoded together:
    each needs its own cache and one latent frame of float32, overlaps counted once per tile.
    """
    if sizes.diffusion_decoder is not None:
        return _diffusion_activations(last, decode, sizes, device, frames_in_ram)
    width, height, frames = last.width, last.height, last.frames
    out = 8 * width * height * 3 * 5  # one latent frame as float32 and as uint8
    if tiling := decode.tiling((1, last.latent_height, last.latent_width)):
        area = tiling.area * PIXELS_PER_LATENT**2
        largest = area if tiling.is_whole else area // len(tiling.rows) // len(tiling.cols)
        out += 0 if tiling.is_whole else FRAMES_PER_LATENT * area * BAND_BYTES
    elif decode.tile_px == decode.tile_frames == "auto":
        area = largest = width * height
    else:
        side = width if decode.tile_px == "auto" else decode.tile_px
        span = 80 if decode.tile_frames == "auto" else decode.tile_frames
        area = largest = min(side, width) * min(side, height)
        out += BAND_BYTES * width * height * min(span, frames) * (2 if span < frames else 1)
    held = int(sizes.decoder_held * area * sizes.value_bytes)
    return held + _chunk_bytes(largest, sizes, device) + out


def _chunk_bytes(area: int, sizes: ModelSizes, device: str) -> int:
    """Bytes of the tensors of a chunk of a tile of ``area`` pixels: whole frames, at least one."""
    most = CHUNK_VALUES.get(device, CHUNK_VALUES_ELSEWHERE)
    frame = 0
    if sizes.decoder is not None:
        frame = sizes.decoder.frame_values * area // PIXELS_PER_LATENT**2
    chunk = max(most // frame, 1) * frame if frame else most
    return int((CHUNK_TENSORS * chunk + FRAME_TENSORS * frame) * sizes.value_bytes)


def decode_flops(last: Resolution, decode: Decode, sizes: ModelSizes) -> float:
    """FLOPs of decoding a clip, overlaps of tiles counted twice; 0 without a decoder.

    Of a diffusion decoder the whole clip is counted, also where tiles are asked for.
    """
    latents = (last.latent_frames, last.latent_height, last.latent_width)
    if sizes.diffusion_decoder is not None:
        return diffusion_flops(sizes.diffusion_decoder, latents, decode.steps)
    if sizes.decoder is None:
        return 0.0
    tiles = decode.tiles(latents)
    return sum(
        sizes.decoder.decode_flops(f.stop - f.start, r.stop - r.start, c.stop - c.start)
        for f in tiles.frames
        for r in tiles.rows
        for c in tiles.cols
    )


def _diffusion_activations(
    last: Resolution, decode: Decode, sizes: ModelSizes, device: str, frames_in_ram: bool
) -> int:
    """Peak bytes of the diffusion decoder: frames between its blocks, a band, pixels of a chunk.

    In tiles, the frames are those of a tile, and the features of the whole clip and the blended
    band of pixels come on top.
    """
    config, width = sizes.diffusion_decoder, sizes.value_bytes
    if config is None:
        raise TypeError("the video decoder is not a diffusion decoder")
    latents = (last.latent_frames, last.latent_height, last.latent_width)
    working = width * (
        BLOCK_TENSORS * BAND_VALUES.get(device, BAND_VALUES_ELSEWHERE)
        + ATTENTION_VALUES.get(device, ATTENTION_VALUES_ELSEWHERE)
    )
    working += 8 * last.width * last.height * 3 * 5
    size = decode.diffusion_tiles
    if size is None:
        return working + (0 if frames_in_ram else width * held_values(config, latents))
    frames, rows, cols = (
        whole if tile is None else min(-(-tile // scale), whole)
        for tile, scale, whole in zip(
            (size.frames, size.rows, size.cols),
            (FRAMES_PER_LATENT, PIXELS_PER_LATENT, PIXELS_PER_LATENT),
            latents,
            strict=True,
        )
    )
    last_stage = len(config.strides) - 1
    features = math.prod(config.grid(latents, last_stage)) * config.channels[last_stage]
    span = last.frames if size.frames is None else min(2 * size.frames, last.frames)
    band = BAND_BYTES * last.width * last.height * span
    held = 0 if frames_in_ram else width * (held_values(config, (frames, rows, cols)) + features)
    return working + held + band


def decoder_ram_bytes(last: Resolution, sizes: ModelSizes) -> int:
    """Bytes of RAM for the frames between the blocks of a diffusion decoder."""
    if sizes.diffusion_decoder is None:
        return 0
    latents = (last.latent_frames, last.latent_height, last.latent_width)
    return sizes.value_bytes * held_values(sizes.diffusion_decoder, latents)
