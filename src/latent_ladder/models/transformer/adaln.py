"""Adaptive layer norm (AdaLN-single): networks that map a noise level to scales, shifts and gates.

Source: PixArt-alpha (arXiv 2310.00426), as used in the LTX-2 reference.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.weights.linear import Linear

MAX_PERIOD = 10000.0


class TimestepEmbedder(nn.Module):
    """Timestep embedding: sinusoid, Linear, SiLU, Linear."""

    def __init__(self, sinusoid_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(sinusoid_dim, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps (...,) as (..., dim), in the dtype of the weights."""
        features = sinusoid(timesteps, self.linear_1.in_features).to(self.linear_1.compute_dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(features)))
        return out


class AdaLn(nn.Module):
    """Modulation network: a timestep embedding, then ``rows`` vectors of width ``dim``."""

    def __init__(self, dim: int, rows: int, timestep_dim: int) -> None:
        super().__init__()
        self.rows = rows
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(timestep_dim, dim)})
        self.linear = Linear(dim, rows * dim)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Map timesteps (B, U) in [0, 1000] to rows (B, U, rows, dim) and embedding (B, U, dim)."""
        embedded: Tensor = self.emb["timestep_embedder"](timesteps)
        rows: Tensor = self.linear(F.silu(embedded))
        return rows.view(*rows.shape[:-1], self.rows, -1), embedded


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps (...,) as (..., dim) float32: cosines, then sines.

    Frequencies form a geometric series from 1 down to nearly 1 / ``MAX_PERIOD``.
    """
    steps = torch.arange(dim // 2, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[..., None] * torch.exp(steps * (-math.log(MAX_PERIOD) / (dim // 2)))
    return torch.cat([angles.cos(), angles.sin()], -1)
