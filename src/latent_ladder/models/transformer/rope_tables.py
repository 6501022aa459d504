"""Token positions and the rotation tables of split rotary embeddings.

Positions are bounds ``[start, end)``: seconds on the time axis, pixels on the others. Tables are
built once per stage with batch size 1 and used by every step, block and guidance pass.
Follows the position and rotation conventions of the LTX-2 reference (``patchifiers``, ``rope``):
a float64 frequency grid cast to float32, angles in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from latent_ladder.models.transformer.rope import Rope

MEL_PER_LATENT, MEL_HOP, SAMPLE_RATE = 4, 160, 16000


def video_positions(frames: int, height: int, width: int, fps: Fraction | float) -> Tensor:
    """Bounds of the tokens of a latent video (frames, height, width), f, h, w order: (1, 3, N, 2).

    The first latent frame stands for one pixel frame, every other for eight.
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
    """Bounds in seconds of ``length`` audio tokens: (1, 1, length, 2)."""
    mel = torch.arange(length + 1, dtype=torch.float32) * MEL_PER_LATENT
    seconds = (mel + 1 - MEL_PER_LATENT).clamp_min_(0) * MEL_HOP / SAMPLE_RATE
    return torch.stack([seconds[:-1], seconds[1:]], -1)[None, None]


class RopeShape(NamedTuple):
    """What a table depends on besides positions: attention width, heads, position scales."""

    dim: int
    heads: int
    max_pos: Sequence[float]
    theta: float = 10000.0
    float64_frequencies: bool = True


def rope_table(positions: Tensor, shape: RopeShape) -> Rope:
    """Tables for bounds (B, axes, N, 2).

    Every frequency serves all axes in turn; where ``dim / 2`` is no multiple of the number of
    axes, the first entries rotate by nothing.
    """
    batch, axes, tokens, _ = positions.shape
    max_pos = torch.tensor(shape.max_pos, dtype=torch.float32, device=positions.device)
    place = positions.float().mean(-1) / max_pos[:, None]
    grid = _frequencies(shape, axes).to(positions.device)
    half = shape.dim // 2
    angles = positions.new_zeros((batch, tokens, half), dtype=torch.float32)
    turning = angles[:, :, half - axes * len(grid) :].view(batch, tokens, len(grid), axes)
    torch.mul((place * 2 - 1).transpose(1, 2)[:, :, None], grid[:, None], out=turning)
    angles = angles.view(batch, tokens, shape.heads, half // shape.heads)
    return Rope(torch.complex(angles.cos(), angles.sin()))


def _frequencies(shape: RopeShape, axes: int) -> Tensor:
    dtype = torch.float64 if shape.float64_frequencies else torch.float32
    exponents = torch.linspace(0, 1, shape.dim // (2 * axes), dtype=dtype)
    return (shape.theta**exponents * (math.pi / 2)).float()
