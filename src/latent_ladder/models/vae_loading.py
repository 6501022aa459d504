"""Shared by the VAEs: statistics of their latents, and loading of networks by original names."""

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
class LatentStatistics:
    """Mean and standard deviation of a VAE's latents per channel, float32."""

    mean: Tensor
    std: Tensor


def read_latent_statistics(
    component: Component, device: torch.device | str = "cpu"
) -> LatentStatistics:
    """Read the per-channel latent statistics of a video or audio VAE, without loading the rest."""
    mean, std = (
        read_float(component, f"per_channel_statistics.{name}", torch.float32).to(device)
        for name in ("mean-of-means", "std-of-means")
    )
    return LatentStatistics(mean, std)


def load_network(
    component: Component,
    prefix: str,
    build: Callable[[], M],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> M:
    """Load a network from the tensors below ``prefix`` ("" for all), which have its own names.

    Raises :class:`UnknownLayout` if names or shapes do not match.
    """
    label = f"{component.file.path.name}: {component.role.replace('_', ' ')} {prefix.rstrip('.')}"
    read = tensor_readers(component, prefix)
    return load_module(build, read, device=device, dtype=dtype, label=label.strip())
