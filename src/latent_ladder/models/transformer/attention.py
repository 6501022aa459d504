"""Attention with normed queries and keys, split RoPE and per-head gates, and the feed-forward.

Keys and values are made apart from the queries: one set of them serves every guidance pass that
shares its source, and queries go through in chunks, so that only keys and values are ever whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.transformer.norms import inverse_rms
from latent_ladder.models.transformer.rope import Rope, rotate
from latent_ladder.models.weights.linear import Linear

GELU_BLOCK = 1 << 18
"""Elements whose exponents are held at once."""


class KeysValues(NamedTuple):
    """Keys and values, both (rows, tokens, heads, head_dim)."""

    keys: Tensor
    values: Tensor

    def rows(self, part: slice, count: int) -> KeysValues:
        """The rows ``part``; a single one is repeated (as a view) ``count`` times."""
        keys, values = self.keys[part], self.values[part]
        if len(keys) == count:
            return KeysValues(keys, values)
        return KeysValues(
            keys.expand(count, -1, -1, -1),
            values.expand(count, -1, -1, -1),
        )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    attended: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return attended


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(-1) @ v


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "sdpa": _sdpa,
    "plain": _plain,
}
"""Ways to compute attention of (rows, heads, tokens, head_dim) tensors with an additive bias."""


class QkNorm(nn.Module):
    """RMS norm over the whole inner width (all heads together) with a learnt scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normed ``x``, in its own memory where nothing else can need it."""
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled():
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return x.mul_(inverse_rms(x, self.eps)).mul_(self.weight)


class AttentionShape(NamedTuple):
    """Widths of an attention layer."""

    query_dim: int
    context_dim: int
    heads: int
    head_dim: int
    gated: bool
    eps: float


class Attention(nn.Module):
    """One attention layer; ``backend`` names an entry of :data:`BACKENDS`."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.backend = "sdpa"
        inner = shape.heads * shape.head_dim
        self.q_norm = QkNorm(inner, shape.eps)
        self.k_norm = QkNorm(inner, shape.eps)
        self.to_q = Linear(shape.query_dim, inner)
        self.to_k = Linear(shape.context_dim, inner)
        self.to_v = Linear(shape.context_dim, inner)
        self.to_out = nn.ModuleList([Linear(inner, shape.query_dim)])
        self.to_gate_logits = Linear(shape.query_dim, shape.heads) if shape.gated else None

    def keys_values(self, context: Tensor, rope: Rope | None = None) -> KeysValues:
        """Keys and values of ``context`` (rows, tokens, D), keys rotated by ``rope``."""
        keys = self._split(self.k_norm(self.to_k(context)))
        if rope is not None:
            keys = rotate(keys, rope)
        return KeysValues(keys, self._split(self.to_v(context)))

    def forward(
        self, x: Tensor, context: KeysValues, rope: Rope | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Attend from ``x`` (rows, tokens, D); ``bias`` (rows or 1, 1, tokens, keys) is added."""
        queries = self._split(self.q_norm(self.to_q(x)))
        if rope is not None:
            queries = rotate(queries, rope)
        q, k, v = (t.transpose(1, 2) for t in (queries, *context))
        return self._gated_out(x, BACKENDS[self.backend](q, k, v, bias).transpose(1, 2))

    def value_path(self, x: Tensor) -> Tensor:
        """Spatio-temporal guidance: every token attends to itself alone."""
        return self._gated_out(x, self._split(self.to_v(x)))

    def _gated_out(self, x: Tensor, attended: Tensor) -> Tensor:
        if self.to_gate_logits is not None:
            gates = torch.sigmoid(self.to_gate_logits(x)).mul(2)[..., None]
            if torch.is_grad_enabled():
                attended = attended * gates
            else:
                attended.mul_(gates)
        out: Tensor = self.to_out[0](attended.flatten(-2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


def gelu_(x: Tensor) -> Tensor:
    """GELU in its tanh form, in place: ``x * sigmoid(2 c (x + 0.044715 x^3))``, c = sqrt(2/pi).

    On a CPU a sigmoid takes a third of the time of a tanh; blocks keep the exponent in its cache.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
        torch.ops.aten.gelu_(x, approximate="tanh")
        return x
    slope = x.new_full((), 2 * math.sqrt(2 / math.pi))
    flat = x.view(-1)
    for start in range(0, len(flat), GELU_BLOCK):
        block = flat[start : start + GELU_BLOCK]
        exponent = torch.addcmul(slope, block, block, value=float(slope) * 0.044715)
        block.mul_(exponent.mul_(block).sigmoid_())
    return x


class _Projection(nn.Module):
    """A Linear under the name ``proj``."""

    def __init__(self, dim: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.proj = Linear(dim, inner, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear; names as in the checkpoint: ``net.0.proj``, ``net.2``."""

    def __init__(self, dim: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.net = nn.ModuleDict(
            {"0": _Projection(dim, inner, bias), "2": Linear(inner, dim, bias)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """(rows, tokens, D) to the same."""
        hidden = self.net["0"](x)
        if torch.is_grad_enabled():
            hidden = F.gelu(hidden, approximate="tanh")
        else:
            gelu_(hidden)
        out: Tensor = self.net["2"](hidden)
        return out
