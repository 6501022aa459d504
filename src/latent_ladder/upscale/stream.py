"""Frames in, larger frames out, one small batch at a time: memory does not grow with the clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from latent_ladder.upscale.lanczos import resize
from latent_ladder.upscale.model_upscaler import load_network
from latent_ladder.upscale.plan import UpscalePlan
from latent_ladder.upscale.rtx import RtxUpscaler
from latent_ladder.upscale.tiles import TiledNetwork

BATCH_PIXELS = 1 << 21
"""At most this many pixels of results are made at a time, but always one frame."""

Enlarge = Callable[[Tensor], Tensor]


def load_upscaler(plan: UpscalePlan, *, device: torch.device, dtype: torch.dtype) -> Enlarge:
    """What enlarges (n, 3, H, W) 0..1 frames, to any larger size; Lanczos does the rest.

    Raises :class:`UnknownLayout` or :class:`CorruptCheckpoint` for a file that is no upscaler, and
    :class:`MediaError` for ``rtx`` without its card.
    """
    if plan.model is not None:
        return TiledNetwork(load_network(plan.model, device=device, dtype=dtype))
    if plan.name == "rtx":
        return RtxUpscaler((plan.crop.width, plan.crop.height), plan.target, device)
    return lambda frames: frames


def upscaled(frames: Iterator[Tensor], plan: UpscalePlan, enlarge: Enlarge) -> Iterator[Tensor]:
    """Chunks (n, 3, H, W) 0..1 of the plan's source size -> chunks of its target size."""
    width, height = plan.target
    count = max(1, BATCH_PIXELS // (width * height))
    crop = plan.crop
    for chunk in frames:
        shaped = chunk[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        for batch in torch.split(shaped, count):
            yield resize(enlarge(batch), plan.target).clamp(0, 1)
