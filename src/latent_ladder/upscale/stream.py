"""Upscaling of a stream of frames in small batches: memory does not grow with the clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from latent_ladder.upscale.lanczos import lanczos_resize
from latent_ladder.upscale.model_upscaler import load_network
from latent_ladder.upscale.rtx import RtxUpscaler
from latent_ladder.upscale.tiles import TiledNetwork
from latent_ladder.upscale.upscale_plan import UpscalePlan

BATCH_PIXELS = 1 << 21
"""Largest number of output pixels per batch; a batch has at least one frame."""

Upscaler = Callable[[Tensor], Tensor]


def load_upscaler(plan: UpscalePlan, *, device: torch.device, dtype: torch.dtype) -> Upscaler:
    """Load the upscaler of a plan: a function that enlarges frames (n, 3, H, W) in 0..1.

    Its factor may differ from that of the plan; :func:`upscale_frames` corrects the size. Raises
    :class:`UnknownLayout` or :class:`CorruptCheckpoint` for a file that is not an upscaler, and
    :class:`MediaError` for ``rtx`` without an NVIDIA GPU.
    """
    if plan.model is not None:
        return TiledNetwork(load_network(plan.model, device=device, dtype=dtype))
    if plan.name == "rtx":
        return RtxUpscaler((plan.crop.width, plan.crop.height), plan.target, device)
    return lambda frames: frames


def upscale_frames(
    frames: Iterator[Tensor], plan: UpscalePlan, enlarge: Upscaler
) -> Iterator[Tensor]:
    """Crop and enlarge chunks (n, 3, H, W) in 0..1 from the plan's source size to its target size.

    Lanczos resizes what ``enlarge`` returns to the exact size.
    """
    width, height = plan.target
    count = max(1, BATCH_PIXELS // (width * height))
    crop = plan.crop
    for chunk in frames:
        shaped = chunk[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        for batch in torch.split(shaped, count):
            yield lanczos_resize(enlarge(batch), plan.target).clamp(0, 1)
