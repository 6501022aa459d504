"""Kinds of adapter branches (LoRA, LoKr, LoHa, DoRA, differences) and their computation.

Each kind adds to the output of a :class:`Linear` and leaves the weight unchanged, in any stored
form. Change of the weight ``W`` (out, in) at strength ``s``:

=============  =================================  ===============================================
LowRank        ``s B A``                          Hu et al., "LoRA", arXiv 2106.09685
Kronecker      ``s (W1 (x) W2)``                  LoKr: Yeh et al., "LyCORIS", arXiv 2309.14859
Hadamard       ``s (B1 A1) * (B2 A2)``            LoHa: Hyeon-Woo et al., "FedPara", 2108.06098
Difference     ``s D``                            a full difference of weights
BiasShift      ``s d`` on the bias                a difference of biases
RowScale       ``s (g - 1) W``, g one per row     DoRA: Liu et al., arXiv 2402.09353
ColumnScale    ``s W (g - 1)``, one per column    DoRA normalised over the other axis
=============  =================================  ===============================================

DoRA replaces W by ``m V / |V|`` with ``V = W + B A`` and a trained magnitude m per row. With
``g = m / |V|`` that is ``g W + g B A``. Strength s interpolates between W and that:
``W + s ((g - 1) W + g B A)``, which is a RowScale and a LowRank with B scaled by g. Several
adapters are added, each computed from the unchanged W, so their order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_ladder.models.weights.linear import Branch, Linear, LowRank, add_scaled


@dataclass(frozen=True, eq=False)
class Kronecker(Branch):
    """Kronecker product of ``first`` (a, b) and ``second`` (c, d), of shape (a c, b d) (LoKr).

    ``gain`` (a c,) scales the rows (DoRA).
    """

    first: Tensor
    second: Tensor
    gain: Tensor | None = None

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Add the branch without forming the product: (W1 (x) W2) vec(X) = vec(W1 X W2^T)."""
        inner = F.linear(x.reshape(*x.shape[:-1], self.first.shape[1], -1), self.second)
        return add_scaled(
            y, _apply_gain((self.first @ inner).flatten(-2), self.gain), self.strength
        )

    def delta(self) -> Tensor:
        return self.strength * torch.kron(self.first.float(), self.second.float())


@dataclass(frozen=True, eq=False)
class Hadamard(Branch):
    """Element-wise product ``(up_1 down_1) * (up_2 down_2)`` (LoHa); up (out, r), down (r, in).

    ``gain`` (out,) scales the rows (DoRA). The product has no low rank, so it is formed at each
    use.
    """

    up_1: Tensor
    down_1: Tensor
    up_2: Tensor
    down_2: Tensor
    gain: Tensor | None = None

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Form the product (out, in), apply it to ``x`` and free it."""
        product = (self.up_1 @ self.down_1) * (self.up_2 @ self.down_2)
        return add_scaled(y, _apply_gain(F.linear(x, product), self.gain), self.strength)

    def delta(self) -> Tensor:
        first, second = self.up_1.float() @ self.down_1.float(), self.up_2.float()
        return self.strength * first * (second @ self.down_2.float())


@dataclass(frozen=True, eq=False)
class Difference(Branch):
    """Full difference of weights, (out, in)."""

    weight: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Apply the difference to ``x``: as expensive as the layer itself."""
        return add_scaled(y, F.linear(x, self.weight), self.strength)

    def delta(self) -> Tensor:
        return self.strength * self.weight.float()


@dataclass(frozen=True, eq=False)
class BiasShift(Branch):
    """Difference of biases, (out,); also for layers without a bias."""

    bias: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Add the difference to every token."""
        return add_scaled(y, self.bias.expand_as(y), self.strength)


@dataclass(frozen=True, eq=False)
class RowScale(Branch):
    """Row scale of the base weight by ``1 + excess`` (out,); must be the layer's first branch."""

    excess: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Add ``excess`` times ``y`` without bias: ``y`` is the base output so far."""
        base = y if layer.bias is None else y - layer.bias
        return add_scaled(y, base * self.excess, self.strength)


@dataclass(frozen=True, eq=False)
class ColumnScale(Branch):
    """Column scale of the base weight by ``1 + excess`` (in,)."""

    excess: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:
        """Apply the base weight to ``x * excess``: as expensive as the layer itself."""
        return add_scaled(
            y, F.linear(x * self.excess, effective_weight(layer, x.dtype)), self.strength
        )


def effective_weight(layer: Linear, dtype: torch.dtype) -> Tensor:
    """Weight (out, in) that the layer applies, including the input scale of AWQ."""
    scale = None if layer.quantized_weight is None else layer.quantized_weight.input_scale
    matrix = layer.dense_weight(dtype)
    return matrix if scale is None else matrix * scale.to(dtype)


def apply_dora(branch: Branch, magnitude: Tensor, layer: Linear) -> tuple[Branch, ...]:
    """Branches of DoRA: ``branch`` with its trained ``magnitude``, float32.

    ``magnitude`` is (out,) or (out, 1) for rows, (1, in) for columns (only for LowRank). Norms are
    those of the dequantised weight plus the branch at strength 1, in float32.
    """
    by_rows = magnitude.shape[0] == layer.out_features
    dtype = layer.compute_dtype
    adapted_weight = effective_weight(layer, torch.float32) + branch.delta().to(layer.device)
    norms = torch.linalg.vector_norm(adapted_weight, dim=1 if by_rows else 0)
    gain = magnitude.flatten().float() / norms
    excess = (gain - 1).to(dtype)
    if not by_rows:
        low_rank = cast(LowRank, branch)
        scaled: Branch = replace(
            low_rank, down=(low_rank.down.float() * gain).to(low_rank.down.dtype)
        )
        return ColumnScale(1.0, excess), scaled
    if isinstance(branch, LowRank):
        scaled = replace(branch, up=(branch.up.float() * gain[:, None]).to(branch.up.dtype))
    else:
        scaled = replace(cast(Kronecker | Hadamard, branch), gain=gain.to(dtype))
    return RowScale(1.0, excess), scaled


def order_branches(branches: list[Branch]) -> tuple[Branch, ...]:
    """Order the branches of one layer: all row scales first, combined into one."""
    row_scales = [b for b in branches if isinstance(b, RowScale)]
    others = [b for b in branches if not isinstance(b, RowScale)]
    if len(row_scales) > 1:
        row_scales = [
            RowScale(1.0, torch.stack([b.strength * b.excess for b in row_scales]).sum(0))
        ]
    return (*row_scales, *others)


def merge_low_rank(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """The branches with all low-rank ones as one, whose rank is the sum of theirs.

    Two products instead of two for each. Strengths go into the second factor, so its copy is
    rounded to the dtype of the branches.
    """
    low_rank = [b for b in branches if isinstance(b, LowRank)]
    if len(low_rank) < 2 or len({b.down.dtype for b in low_rank}) > 1:
        return tuple(branches)
    down = torch.cat([b.down for b in low_rank])
    up = torch.cat([(b.up.float() * b.strength).to(b.up.dtype) for b in low_rank], dim=1)
    others = [b for b in branches if not isinstance(b, LowRank)]
    scales = [b for b in others if isinstance(b, RowScale)]
    return (*scales, LowRank(1.0, down, up), *(b for b in others if not isinstance(b, RowScale)))


def _apply_gain(y: Tensor, gain: Tensor | None) -> Tensor:
    return y if gain is None else y * gain
