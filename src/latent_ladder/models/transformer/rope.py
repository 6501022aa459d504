"""Rotary position embeddings (RoPE) in split form: apply a rotation table to queries or keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RopeTable(NamedTuple):
    """Rotation ``cos + i sin`` per token, complex64 (batch or 1, tokens, heads, head_dim / 2)."""

    rotation: Tensor

    @property
    def cos(self) -> Tensor:
        """Cosines, float32, a view."""
        return self.rotation.real

    @property
    def sin(self) -> Tensor:
        """Sines, float32, a view."""
        return self.rotation.imag

    def select_tokens(self, part: slice) -> RopeTable:
        """Select a range of tokens, as a view."""
        return RopeTable(self.rotation[:, part])


def rotate(x: Tensor, rope: RopeTable) -> Tensor:
    """Rotate the channel pairs of ``x`` (B, N, heads, head_dim), in the dtype of ``x``.

    Channel i of a head is paired with channel i + head_dim / 2. The channels inside a head may be
    returned in a different order, the same for all tensors of one dtype and autograd mode, so the
    result is only valid for attention scores.
    """
    first, second = x.reshape(*x.shape[:-1], 2, -1).unbind(-2)
    if x.dtype == torch.float32 and not torch.is_grad_enabled():
        # Interleaved pairs make one contiguous complex product; half a head is too short a loop.
        return torch.view_as_real(torch.complex(first, second).mul_(rope.rotation)).flatten(-2)
    cos, sin = rope.cos.to(x.dtype), rope.sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
