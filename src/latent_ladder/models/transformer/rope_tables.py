"""Token positions, and rotation tables for rotary position embeddings (RoPE).

Positions are intervals ``[start, end)``: seconds on the time axis, pixels on the other axes.
Tables are built once per stage with batch size 1 and used by all steps, blocks and guidance
passes. Source: LTX-2 reference (``patchifiers``, ``rope``): a float64 frequency grid cast to
float32, angles in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from latent_ladder.models.transformer.rope import RopeTable

MEL_PER_LATENT, MEL_HOP, SAMPLE_RATE = 4, 160, 16000


def video_positions(frames: int, height: int, width: int, fps: Fraction | float) -> Tensor:
    """Position intervals (1, 3, N, 2) of the tokens of a latent video, in (F, H, W) order.

    ``frames``, ``height`` and ``width`` count latents; ``fps`` is that of the video. The first
    latent frame covers one video frame, every other one eight.
    """
    t = torch.arange(frames, dtype=torch.float32) * FRAMES_PER_LATENT
    t = torch.stack([t, t + FRAMES_PER_LATENT], -1)
    t = (t + 1 - FRAMES_PER_LATENT).clamp_min_(0) / float(fps)
    h = torch.arange(height, dtype=torch.float32) * PIXELS_PER_LATENT
    w = torch.arange(width, dtype=torch.float32) * PIXELS_PER_LATENT
    shape = (frames, height, width, 2)
    axes = (
        t[:, None, None],
        torch.stack([h, h + PIXELS_PER_LATENT], -1)[None, :, None],
        torch.stack([w, w + PIXELS_PER_LATENT], -1)[None, None],
    )
    return torch.stack([a.expand(shape).reshape(-1, 2) for a in axes])[None]


def audio_positions(length: int) -> Tensor:
    """Position intervals in seconds of ``length`` audio tokens, (1, 1, length, 2)."""
    mel = torch.arange(length + 1, dtype=torch.float32) * MEL_PER_LATENT
    seconds = (mel + 1 - MEL_PER_LATENT).clamp_min_(0) * MEL_HOP / SAMPLE_RATE
    return torch.stack([seconds[:-1], seconds[1:]], -1)[None, None]


class RopeConfig(NamedTuple):
    """RoPE configuration: attention width ``dim``, heads, position scale per axis, base."""

    dim: int
    heads: int
    max_pos: Sequence[float]
    theta: float = 10000.0
    float64_frequencies: bool = True


def build_rope_table(positions: Tensor, config: RopeConfig) -> RopeTable:
    """Build the rotation table of position intervals (B, axes, N, 2).

    A token's position is the middle of its interval. Each frequency is used once per axis; if
    ``dim / 2`` is not a multiple of the number of axes, the first channel pairs are not rotated.
    """
    batch, axes, tokens, _ = positions.shape
    max_pos = torch.tensor(config.max_pos, dtype=torch.float32, device=positions.device)
    position = positions.float().mean(-1) / max_pos[:, None]
    grid = _frequencies(config, axes).to(positions.device)
    half = config.dim // 2
    angles = positions.new_zeros((batch, tokens, half), dtype=torch.float32)
    rotated = angles[:, :, half - axes * len(grid) :].view(batch, tokens, len(grid), axes)
    torch.mul((position * 2 - 1).transpose(1, 2)[:, :, None], grid[:, None], out=rotated)
    angles = angles.view(batch, tokens, config.heads, half // config.heads)
    return RopeTable(torch.complex(angles.cos(), angles.sin()))


def _frequencies(config: RopeConfig, axes: int) -> Tensor:
    dtype = torch.float64 if config.float64_frequencies else torch.float32
    exponents = torch.linspace(0, 1, config.dim // (2 * axes), dtype=dtype)
    return (config.theta**exponents * (math.pi / 2)).float()
