"""The networks that turn a noise level into scales, shifts and gates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.linear import Linear

MAX_PERIOD = 10000.0


class AdaLn(nn.Module):
    """Sinusoid of a timestep -> two-layer embedding -> ``rows`` vectors of width ``dim``."""

    def __init__(self, dim: int, rows: int, timestep_dim: int) -> None:
        super().__init__()
        self.rows = rows
        embedder = {"linear_1": Linear(timestep_dim, dim), "linear_2": Linear(dim, dim)}
        self.emb = nn.ModuleDict({"timestep_embedder": nn.ModuleDict(embedder)})
        self.linear = Linear(dim, rows * dim)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, U) timesteps in [0, 1000] to (B, U, rows, dim) and the embedding (B, U, dim)."""
        first, second = self.emb["timestep_embedder"].values()
        wave = sinusoid(timesteps, first.in_features).to(first.weight.dtype)
        embedded = second(F.silu(first(wave)))
        return self.linear(F.silu(embedded)).unflatten(-1, (self.rows, -1)), embedded


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """(...,) to (..., dim) float32: cosines, then sines, of geometric frequencies from 1."""
    steps = torch.arange(dim // 2, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[..., None] * torch.exp(steps * (-math.log(MAX_PERIOD) / (dim // 2)))
    return torch.cat([angles.cos(), angles.sin()], -1)
