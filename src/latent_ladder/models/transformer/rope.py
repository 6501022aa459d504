"""The rotation of split rotary embeddings: tables in, tensors out; knows no positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """``turns`` = cos + i sin, complex64 (batch or 1, tokens, heads, head_dim / 2)."""

    turns: Tensor

    @property
    def cos(self) -> Tensor:
        """The cosines, a view."""
        return self.turns.real

    @property
    def sin(self) -> Tensor:
        """The sines, a view."""
        return self.turns.imag

    def tokens(self, part: slice) -> Rope:
        """The rows of some tokens, a view."""
        return Rope(self.turns[:, part])


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the two halves of every head of ``x`` (B, N, heads, head_dim) against each other.

    In the dtype of ``x``. The channels inside a head may come out in another order, the same for
    all tensors of one dtype and autograd mode: use the result for scores only.
    """
    first, second = x.reshape(*x.shape[:-1], 2, -1).unbind(-2)
    if x.dtype == torch.float32 and not torch.is_grad_enabled():
        # Pairs side by side make one contiguous product; half a head is too short a loop.
        return torch.view_as_real(torch.complex(first, second).mul_(rope.turns)).flatten(-2)
    cos, sin = rope.cos.to(x.dtype), rope.sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
