"""Normalisation of latent statistics: AdaIN to a reference, or to a mean and standard deviation.

The formulas are those of ``LTXVAdainLatent``, ``LTXVStatNormLatent`` and the per-step patchers of
ComfyUI-LTXVideo.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latent_ladder.comfyui.runtime.values import StepStatistics

MAX_QUANTILE_VALUES = 2**24
"""Maximum number of values for ``torch.quantile``."""


def apply_statistics(latents: Tensor, to: StepStatistics, factor: float) -> Tensor:
    """Return latents (1, C, F, H, W) moved by ``factor`` towards the target statistics ``to``."""
    if to.reference is not None:
        return adain(latents, to.reference.to(latents), factor, per_frame=to.per_frame)
    return normalise_statistics(latents, to, factor)


def adain(latents: Tensor, reference: Tensor, factor: float, *, per_frame: bool) -> Tensor:
    """Return latents moved by ``factor`` towards the statistics of a reference, per channel.

    Mean and standard deviation are those of the clip, or of each frame if ``per_frame``. A
    reference of one frame is used for all frames. Raises ``ValueError`` for a shorter reference.
    """
    if per_frame:
        frames = latents.shape[2]
        if reference.shape[2] == 1:
            reference = reference.expand(-1, -1, frames, -1, -1)
        elif reference.shape[2] < frames:
            raise ValueError(f"the latent has {frames} frames, the reference {reference.shape[2]}")
        reference = reference[:, :, :frames]
    axes = (-2, -1) if per_frame else (-3, -2, -1)
    std, mean = torch.std_mean(latents, axes, keepdim=True)
    target_std, target_mean = torch.std_mean(reference, axes, keepdim=True)
    target = (latents - mean) / std.clamp_min(1e-8) * target_std + target_mean
    return torch.lerp(latents, target, factor)


def normalise_statistics(latents: Tensor, to: StepStatistics, factor: float) -> Tensor:
    """Return latents moved by ``factor`` towards a mean and standard deviation, per channel.

    The current statistics are measured on the central ``percentile`` percent of the values; with
    ``clip`` the other values are clipped to those bounds.
    """
    flat = latents.float().flatten(2)
    tail = (100 - to.percentile) / 200
    low, high = _quantile_bounds(flat, tail)
    inside = (flat >= low) & (flat <= high)
    count = inside.sum(-1, keepdim=True)
    mean = (flat * inside).sum(-1, keepdim=True) / count.clamp(min=1)
    variance = ((flat - mean).square() * inside).sum(-1, keepdim=True)
    std = (variance / (count - 1).clamp(min=1)).sqrt()
    values = flat.clamp(low, high) if to.clip else flat
    target = torch.where(std > 1e-8, (values - mean) / std * to.std, values - mean) + to.mean
    return torch.lerp(latents, target.reshape(latents.shape).to(latents.dtype), factor)


def _quantile_bounds(flat: Tensor, tail: float) -> tuple[Tensor, Tensor]:
    """Return the quantiles ``tail`` and 1 - ``tail`` of each channel of (1, C, N)."""
    ends = torch.tensor([tail, 1 - tail], dtype=flat.dtype, device=flat.device)
    step = max(1, MAX_QUANTILE_VALUES // flat.shape[-1])
    parts = [torch.quantile(part, ends, dim=-1) for part in torch.split(flat, step, dim=1)]
    low, high = torch.cat(parts, dim=-1)
    return low[..., None], high[..., None]
