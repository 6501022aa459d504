"""A Linear layer whose weight may be amended by low-rank branches without being touched."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Branch(NamedTuple):
    """A low-rank amendment ``strength * up @ down``: ``down`` (r, in), ``up`` (out, r)."""

    down: Tensor
    up: Tensor
    strength: float


class Linear(nn.Module):
    """``y = x W^T + b + sum(strength * (x down^T) up^T)``.

    The base weight is never written to: switching branches costs nothing and loses no precision,
    and works whatever way the weight is stored. ``matrix`` is the one place that says how.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.branches: tuple[Branch, ...] = ()

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return int(self.weight.shape[0])

    def matrix(self) -> Tensor:
        """The weight (out, in) in the dtype of the computation."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        y = F.linear(x, self.matrix(), self.bias)
        for branch in self.branches:
            y = _add_branch(y, x, branch)
        return y


def _add_branch(y: Tensor, x: Tensor, branch: Branch) -> Tensor:
    low = F.linear(x, branch.down)
    if torch.is_grad_enabled():
        return y + branch.strength * F.linear(low, branch.up)
    y.view(-1, y.shape[-1]).addmm_(
        low.view(-1, low.shape[-1]), branch.up.t(), alpha=branch.strength
    )
    return y
