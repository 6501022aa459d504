"""What the VAEs share: statistics of their latents, and strict loading by original names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.models.weights.loading import load_module, tensor_readers
from latent_ladder.models.weights.quantized_tensor import read_float

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per channel of a VAE's latents, float32."""

    mean: Tensor
    std: Tensor


def statistics(component: Component, device: torch.device | str = "cpu") -> Statistics:
    """The per-channel statistics of a video or audio VAE, without loading the rest."""
    mean, std = (
        read_float(component, f"per_channel_statistics.{name}", torch.float32).to(device)
        for name in ("mean-of-means", "std-of-means")
    )
    return Statistics(mean, std)


def load_part(
    component: Component,
    prefix: str,
    build: Callable[[], M],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> M:
    """The network of the tensors below ``prefix`` ("" for all), which are named as its own are."""
    what = f"{component.file.path.name}: {component.role.replace('_', ' ')} {prefix.rstrip('.')}"
    read = tensor_readers(component, prefix)
    return load_module(build, read, device=device, dtype=dtype, label=what.strip())
