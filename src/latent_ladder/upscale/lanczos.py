"""Lanczos resizing of frames to any size, as blocks of small matrix products.

The kernel is sinc(x) sinc(x / 3) over three input pixels on each side; when shrinking, it is
widened by the factor to prevent aliasing (Duchon 1979; the same as Pillow's LANCZOS). Values are
filtered as stored, gamma encoded, as video players, FFmpeg and ComfyUI do, and as the networks were
trained. In linear light, dark outlines would become thinner and bright halos larger.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

LOBES = 3
OUTPUTS_PER_BLOCK = 64
"""Output pixels per matrix product; small, so that few weights are zero."""

WeightBlock = tuple[int, int, Tensor]
"""First and last (exclusive) input pixel, and their weights (last - first, outputs)."""


def lanczos_resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (n, C, H, W) to (n, C, height, width), ``size`` = (width, height).

    Values may exceed the range of the input.
    """
    width, height = size
    if frames.shape[-1] != width:
        blocks = _weights_on(_weight_blocks(frames.shape[-1], width), frames)
        frames = torch.cat([frames[..., a:b] @ weights for a, b, weights in blocks], -1)
    if frames.shape[-2] != height:
        blocks = _weights_on(_weight_blocks(frames.shape[-2], height), frames)
        frames = torch.cat([weights.T @ frames[..., a:b, :] for a, b, weights in blocks], -2)
    return frames


def _weights_on(blocks: tuple[WeightBlock, ...], like: Tensor) -> list[WeightBlock]:
    return [(first, last, weights.to(like)) for first, last, weights in blocks]


@lru_cache(maxsize=16)
def _weight_blocks(length: int, wanted: int) -> tuple[WeightBlock, ...]:
    """The weights to resize an axis from ``length`` to ``wanted`` pixels."""
    step = length / wanted
    widened = max(step, 1.0)
    blocks = []
    for start in range(0, wanted, OUTPUTS_PER_BLOCK):
        centres = (
            torch.arange(start, min(start + OUTPUTS_PER_BLOCK, wanted), dtype=torch.float64) + 0.5
        ) * step
        first = max(int(centres[0] - LOBES * widened), 0)
        last = min(int(centres[-1] + LOBES * widened) + 1, length)
        distance = torch.arange(first, last)[:, None] + 0.5 - centres
        weights = _kernel(distance / widened)
        blocks.append((first, last, (weights / weights.sum(0)).float()))
    return tuple(blocks)


def _kernel(x: Tensor) -> Tensor:
    return torch.where(x.abs() < LOBES, torch.sinc(x) * torch.sinc(x / LOBES), 0.0)
