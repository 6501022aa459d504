"""Temporal rounds of keyframes-first clips (DFR): tiles with given and generated keyframes.

A round takes a clip whose frame rate was doubled by the temporal upsampler. Each of its tiles
(:mod:`latent_ladder.latents.keyframe_segments`) is denoised as a clip of its own: its seams are
held by the keyframes made before, and new ones are made in the middle of its segments. Source:
LTX-2 1.2.0 (commit 400fd31) ``DFRPipeline``; later versions changed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from latent_ladder.latents.keyframe_segments import SegmentTile
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, Resolution, duration
from latent_ladder.latents.tokens import video_to_tokens
from latent_ladder.pipeline.start_state import (
    StartState,
    append_guide,
    append_slots,
    keyframe_positions,
    plain_start,
)
from latent_ladder.sampling.denoise import LatentState, Noises

Keyframes = Mapping[int, Tensor]
"""Latents (1, C, 1, H, W) of keyframes by their frame."""
SEAM_STRENGTH = 0.95
"""Strength with which the keyframes at the seams of a tile are kept."""
MAX_CONDITIONING_FPS = Fraction(60)
"""Highest frame rate of the model's time positions; faster clips are denoised at this one."""
ROUND_SEED = 1000
"""Distance of the seeds of two rounds; that of two tiles is 1."""


def tile_resolution(tile: SegmentTile, resolution: Resolution) -> Resolution:
    """The clip of a tile for a round of ``resolution``: its length, at no more than 60 fps."""
    fps = min(resolution.fps, MAX_CONDITIONING_FPS)
    return replace(resolution, frames=tile.frames, fps=fps, audio_latents=0)


def tile_start(
    video: Tensor, keyframes: Keyframes, tile: SegmentTile, resolution: Resolution
) -> StartState:
    """The start of a tile from the upsampled latents (1, C, F, H, W) of the whole round.

    ``keyframes`` holds those at the tile's seams. A new keyframe starts from the latent frame that
    is nearest to it. ``resolution`` is that of the round. The start has no sound.
    """
    own = tile_resolution(tile, resolution)
    part = video[:, :, tile.first_latent : tile.latent_stop]
    start = plain_start(LatentState.of(video_to_tokens(part)), None, own)
    for frame in tile.given:
        positions = keyframe_positions(duration(frame - tile.first_frame, own.fps), own)
        tokens = video_to_tokens(keyframes[frame]).to(start.video.tokens)
        start = append_guide(start, tokens, positions, SEAM_STRENGTH)
    nearest = [round(frame / FRAMES_PER_LATENT) for frame in tile.generated]
    frames = [frame - tile.first_frame for frame in tile.generated]
    return append_slots(start, frames, own, video[:, :, nearest])


def tile_noises(seed: int, number: int, tile: SegmentTile, start_noise: Tensor) -> Noises:
    """The noise of a tile of round ``number`` (1, 2, ...).

    ``start_noise`` (1, N, C) comes from the generator that all stages share; that of the steps from
    one of the tile's own, with the seed ``seed + 1000 number + tile``. Steps are asked for in their
    order.
    """
    generator = torch.Generator().manual_seed((seed + ROUND_SEED * number + tile.number) % 2**64)

    def step_noise(_step: int, _kind: str) -> Tensor:
        return torch.randn(start_noise.shape, generator=generator).flatten(1)

    return Noises(start_noise, None, step_noise)


def join_tiles(parts: Sequence[tuple[SegmentTile, Tensor]]) -> Tensor:
    """The latents (1, C, F, H, W) of a round from those of its tiles, without their repeats."""
    return torch.cat([latents[:, :, tile.repeated_latents :] for tile, latents in parts], dim=2)


def keyframes_after_round(
    known: Keyframes, made: Sequence[tuple[SegmentTile, Tensor]]
) -> dict[int, Tensor]:
    """All keyframes after a round: those given before, and those made (1, C, K, H, W) by its tiles.

    Where tiles overlap, the keyframe of the tile that the frame belongs to is taken: the first.
    """
    found = dict(known)
    for tile, latents in made:
        for n, frame in enumerate(tile.generated):
            found.setdefault(frame, latents[:, :, n : n + 1])
    return found


def at_double_rate(keyframes: Keyframes) -> dict[int, Tensor]:
    """The same keyframes at their frames after the frame rate was doubled."""
    return {2 * frame: latents for frame, latents in keyframes.items()}


def latent_frames_of(frames: int) -> int:
    """Latent frames that hold a clip of ``frames`` frames: what is left of a longer canvas."""
    return -(-(frames - 1) // FRAMES_PER_LATENT) + 1
