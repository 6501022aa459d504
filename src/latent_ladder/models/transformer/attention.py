"""Attention (QK norm, split RoPE, per-head gates) and feed-forward layers of the transformer.

Keys and values are computed separately from queries: guidance passes with the same source share
one set of keys and values, and queries are processed in chunks, so only keys and values are ever
stored for all tokens at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.transformer.attention_backends import BACKENDS
from latent_ladder.models.transformer.fused import gate_heads_, norm_rotate
from latent_ladder.models.transformer.norms import inverse_rms
from latent_ladder.models.transformer.rope import RopeTable, rotate
from latent_ladder.models.weights.linear import Linear

GELU_BLOCK = 1 << 18
"""Elements per block of the in-place GELU: its temporary tensor then fits a CPU's cache."""


class KeysValues(NamedTuple):
    """Keys and values, both (rows, tokens, heads, head_dim)."""

    keys: Tensor
    values: Tensor

    def rows(self, part: slice, count: int) -> KeysValues:
        """Select the rows ``part``; a single row is expanded (as a view) to ``count`` rows."""
        keys, values = self.keys[part], self.values[part]
        if len(keys) == count:
            return KeysValues(keys, values)
        return KeysValues(
            keys.expand(count, -1, -1, -1),
            values.expand(count, -1, -1, -1),
        )


class NagScales(NamedTuple):
    """Settings of normalized attention guidance (NAG, arXiv 2505.21179).

    ``scale`` 1 is no guidance. ``tau`` limits the L1 norm of the guided output to that many times
    the norm of the positive one. ``alpha`` mixes the guided output (1) with the positive one (0).
    ``modulated``: the negative prompt is modulated by the noise level like the positive one.
    """

    scale: float
    tau: float = 2.5
    alpha: float = 0.25
    modulated: bool = True


def guide_attention(positive: Tensor, negative: Tensor, nag: NagScales) -> Tensor:
    """Push an attention output away from that of a negative prompt, both (..., D).

    With z = scale * positive - (scale - 1) * negative and r = |z|_1 / |positive|_1 of each token:
    alpha * z * min(1, tau / r) + (1 - alpha) * positive. Source: NAG, arXiv 2505.21179.
    """
    z = positive * nag.scale - negative * (nag.scale - 1)
    limit = positive.norm(p=1, dim=-1, keepdim=True) * nag.tau
    norm = z.norm(p=1, dim=-1, keepdim=True)
    z = z * torch.where(norm > limit, limit / norm.clamp_min(1e-7), 1.0)
    return z * nag.alpha + positive * (1 - nag.alpha)


class QkNorm(nn.Module):
    """RMS norm of queries or keys over all heads together, with a learned scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., dim); in place for float32 on the CPU outside of autograd."""
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled():
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return x.mul_(inverse_rms(x, self.eps)).mul_(self.weight)


class AttentionShape(NamedTuple):
    """Sizes and options of one attention layer."""

    query_dim: int
    context_dim: int
    heads: int
    head_dim: int
    gated: bool
    eps: float


class Attention(nn.Module):
    """One attention layer; ``backend`` names an entry of :data:`BACKENDS`.

    ``fused`` uses the kernels of :mod:`.fused`.
    """

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.backend = "sdpa"
        self.fused = False
        inner = shape.heads * shape.head_dim
        self.q_norm = QkNorm(inner, shape.eps)
        self.k_norm = QkNorm(inner, shape.eps)
        self.to_q = Linear(shape.query_dim, inner)
        self.to_k = Linear(shape.context_dim, inner)
        self.to_v = Linear(shape.context_dim, inner)
        self.to_out = nn.ModuleList([Linear(inner, shape.query_dim)])
        self.to_gate_logits = Linear(shape.query_dim, shape.heads) if shape.gated else None

    @property
    def query_layers(self) -> list[nn.Module]:
        """Layers that work on the tokens of the queries."""
        gates = [] if self.to_gate_logits is None else [self.to_gate_logits]
        return [self.to_q, self.to_out, *gates]

    def keys_values(self, context: Tensor, rope: RopeTable | None = None) -> KeysValues:
        """Compute keys and values of ``context`` (rows, tokens, D), keys rotated by ``rope``."""
        keys = self._norm_and_rotate(self.to_k(context), self.k_norm, rope)
        return KeysValues(keys, self._split_heads(self.to_v(context)))

    def forward(
        self,
        x: Tensor,
        context: KeysValues,
        rope: RopeTable | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``x`` (rows, tokens, D) to ``context``; returns the shape of ``x``.

        ``bias`` (rows or 1, 1, tokens, keys) is added to the attention scores.
        """
        queries = self._norm_and_rotate(self.to_q(x), self.q_norm, rope)
        return self._gate_and_project(x, self._attend(queries, context, bias))

    def guided(
        self, x: Tensor, context: KeysValues, negative: KeysValues, nag: NagScales
    ) -> Tensor:
        """Attend to ``context`` with guidance away from ``negative``; returns the shape of ``x``.

        Guidance acts on the attention output, before gates and output projection.
        """
        queries = self._split_heads(self.q_norm(self.to_q(x)))
        positive = self._attend(queries, context, None)
        away_from = self._attend(queries, negative, None)
        guided = guide_attention(positive.flatten(-2), away_from.flatten(-2), nag)
        return self._gate_and_project(x, guided.view(positive.shape))

    def _attend(self, queries: Tensor, context: KeysValues, bias: Tensor | None) -> Tensor:
        """Attention output (rows, tokens, heads, head_dim)."""
        q, k, v = (t.transpose(1, 2) for t in (queries, *context))
        return BACKENDS[self.backend].function(q, k, v, bias).transpose(1, 2)

    def skip_attention(self, x: Tensor) -> Tensor:
        """Output with attention skipped: each token gets its own value (spatio-temporal guidance).

        Source: STG, arXiv 2411.18664.
        """
        return self._gate_and_project(x, self._split_heads(self.to_v(x)))

    def _norm_and_rotate(self, x: Tensor, norm: QkNorm, rope: RopeTable | None) -> Tensor:
        """Normalise queries or keys ``x`` (rows, tokens, D), split their heads, rotate them."""
        if rope is None:
            return self._split_heads(norm(x))
        if self.fused and not torch.is_grad_enabled():
            return norm_rotate(x, norm.weight, norm.eps, rope.rotation)
        return rotate(self._split_heads(norm(x)), rope)

    def _gate_and_project(self, x: Tensor, attention_output: Tensor) -> Tensor:
        if self.to_gate_logits is not None and self.fused and not torch.is_grad_enabled():
            gate_heads_(attention_output, self.to_gate_logits(x))
        elif self.to_gate_logits is not None:
            gates = torch.sigmoid(self.to_gate_logits(x)).mul(2)[..., None]
            if torch.is_grad_enabled():
                attention_output = attention_output * gates
            else:
                attention_output.mul_(gates)
        out: Tensor = self.to_out[0](attention_output.flatten(-2))
        return out

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


def gelu_(x: Tensor) -> Tensor:
    """Apply GELU (tanh form) in place: ``x * sigmoid(2 c (x + 0.044715 x^3))``, c = sqrt(2/pi).

    On a CPU a sigmoid takes a third of the time of a tanh, and small blocks stay in its cache.
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
    """Linear layer named ``proj``, as in the checkpoint."""

    def __init__(self, dim: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.proj = Linear(dim, inner, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear; checkpoint names ``net.0.proj``, ``net.2``."""

    def __init__(self, dim: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.net = nn.ModuleDict(
            {"0": _Projection(dim, inner, bias), "2": Linear(inner, dim, bias)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, tokens, D) to the same shape."""
        hidden = self.net["0"](x)
        if torch.is_grad_enabled():
            hidden = F.gelu(hidden, approximate="tanh")
        else:
            gelu_(hidden)
        out: Tensor = self.net["2"](hidden)
        return out
