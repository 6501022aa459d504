"""The rotation of split rotary embeddings: tables in, tensors out; knows no positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """``cos`` and ``sin``, float32 (batch or 1, tokens, heads, head_dim / 2)."""

    cos: Tensor
    sin: Tensor

    def tokens(self, part: slice) -> Rope:
        """The rows of some tokens, a view."""
        return Rope(self.cos[:, part], self.sin[:, part])


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the two halves of every head of ``x`` (B, N, heads, head_dim) against each other.

    In the dtype of ``x``; the tables are converted (they are float32, and small per chunk).
    """
    cos, sin = rope.cos.to(x.dtype), rope.sin.to(x.dtype)
    halves = x.reshape(*x.shape[:-1], 2, -1)
    first, second = halves.unbind(-2)
    if torch.is_grad_enabled():
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    turned = halves * cos[..., None, :]
    turned[..., 0, :].addcmul_(second, sin, value=-1)
    turned[..., 1, :].addcmul_(first, sin)
    return turned.flatten(-2)
