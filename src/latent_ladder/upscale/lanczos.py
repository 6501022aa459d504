"""Lanczos resizing of frames, any size to any size, as blocks of small matrix products.

The kernel is sinc(x) sinc(x / 3) over three input pixels to each side; when shrinking it is widened
by the factor, so that nothing aliases (Duchon 1979; the same as Pillow's LANCZOS). Values are taken
as they are stored, gamma encoded: that is what video players, FFmpeg and ComfyUI do, and what the
networks were trained on. In linear light, dark outlines would thin and bright halos would grow.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

LOBES = 3
BLOCK = 64
"""Outputs computed by one product: few enough that little is multiplied by zero."""

Block = tuple[int, int, Tensor]
"""Inputs ``first <= i < last``, and their weights (last - first, outputs)."""


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, C, H, W) -> (n, C, height, width) for ``size`` = (width, height); may overshoot."""
    width, height = size
    if frames.shape[-1] != width:
        blocks = _on(_blocks(frames.shape[-1], width), frames)
        frames = torch.cat([frames[..., a:b] @ weights for a, b, weights in blocks], -1)
    if frames.shape[-2] != height:
        blocks = _on(_blocks(frames.shape[-2], height), frames)
        frames = torch.cat([weights.T @ frames[..., a:b, :] for a, b, weights in blocks], -2)
    return frames


def _on(blocks: tuple[Block, ...], like: Tensor) -> list[Block]:
    return [(first, last, weights.to(like)) for first, last, weights in blocks]


@lru_cache(maxsize=16)
def _blocks(length: int, wanted: int) -> tuple[Block, ...]:
    """The weights of an axis that goes from ``length`` to ``wanted`` pixels."""
    step = length / wanted
    widened = max(step, 1.0)
    blocks = []
    for start in range(0, wanted, BLOCK):
        centres = (
            torch.arange(start, min(start + BLOCK, wanted), dtype=torch.float64) + 0.5
        ) * step
        first = max(int(centres[0] - LOBES * widened), 0)
        last = min(int(centres[-1] + LOBES * widened) + 1, length)
        distance = torch.arange(first, last)[:, None] + 0.5 - centres
        weights = _kernel(distance / widened)
        blocks.append((first, last, (weights / weights.sum(0)).float()))
    return tuple(blocks)


def _kernel(x: Tensor) -> Tensor:
    return torch.where(x.abs() < LOBES, torch.sinc(x) * torch.sinc(x / LOBES), 0.0)
