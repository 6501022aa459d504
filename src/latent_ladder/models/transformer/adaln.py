"""The networks that turn a noise level into scales, shifts and gates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.weights.linear import Linear

MAX_PERIOD = 10000.0


class TimestepEmbedder(nn.Module):
    """Sinusoid, Linear, SiLU, Linear."""

    def __init__(self, wave_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(wave_dim, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(...,) to (..., dim)."""
        wave = sinusoid(timesteps, self.linear_1.in_features).to(self.linear_1.compute_dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(wave)))
        return out


class AdaLn(nn.Module):
    """Sinusoid of a timestep -> two-layer embedding -> ``rows`` vectors of width ``dim``."""

    def __init__(self, dim: int, rows: int, timestep_dim: int) -> None:
        super().__init__()
        self.rows = rows
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(timestep_dim, dim)})
        self.linear = Linear(dim, rows * dim)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, U) timesteps in [0, 1000] to (B, U, rows, dim) and the embedding (B, U, dim)."""
        embedded: Tensor = self.emb["timestep_embedder"](timesteps)
        rows: Tensor = self.linear(F.silu(embedded))
        return rows.view(*rows.shape[:-1], self.rows, -1), embedded


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """(...,) to (..., dim) float32: cosines, then sines, of geometric frequencies from 1."""
    steps = torch.arange(dim // 2, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[..., None] * torch.exp(steps * (-math.log(MAX_PERIOD) / (dim // 2)))
    return torch.cat([angles.cos(), angles.sin()], -1)
