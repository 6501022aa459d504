"""What can stand beside a layer's weight: the forms of adapters, each as its own arithmetic.

Every form amends the output of a :class:`Linear` and leaves the weight alone, in whatever form
that is stored. For a weight ``W`` (out, in), an input ``x`` and a strength ``s``:

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
``g = m / |V|`` that is ``g W + g B A``; at strength s the weight goes that share of the way:
``W + s ((g - 1) W + g B A)``, a RowScale and a LowRank whose B is scaled by g. Several adapters
add up, each one formed with the untouched W, so their order does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_ladder.models.weights.linear import Branch, Linear, LowRank, add_scaled


@dataclass(frozen=True, eq=False)
class Kronecker(Branch):
    """``first`` (a, b) (x) ``second`` (c, d), of shape (a c, b d); ``gain`` (a c,) scales rows."""

    first: Tensor
    second: Tensor
    gain: Tensor | None = None

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Never forms the product: (W1 (x) W2) vec(X) = vec(W1 X W2^T)."""
        inner = F.linear(x.reshape(*x.shape[:-1], self.first.shape[1], -1), self.second)
        return add_scaled(y, _gained((self.first @ inner).flatten(-2), self.gain), self.strength)

    def delta(self) -> Tensor:
        return self.strength * torch.kron(self.first.float(), self.second.float())


@dataclass(frozen=True, eq=False)
class Hadamard(Branch):
    """``(up_1 down_1) * (up_2 down_2)``; up (out, r), down (r, in); ``gain`` (out,) scales rows.

    The element-wise product has no low rank to work through: it is formed at each use.
    """

    up_1: Tensor
    down_1: Tensor
    up_2: Tensor
    down_2: Tensor
    gain: Tensor | None = None

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Forms the (out, in) difference, uses it and forgets it."""
        product = (self.up_1 @ self.down_1) * (self.up_2 @ self.down_2)
        return add_scaled(y, _gained(F.linear(x, product), self.gain), self.strength)

    def delta(self) -> Tensor:
        first, second = self.up_1.float() @ self.down_1.float(), self.up_2.float()
        return self.strength * first * (second @ self.down_2.float())


@dataclass(frozen=True, eq=False)
class Difference(Branch):
    """A full difference of weights, (out, in)."""

    weight: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """A second product as big as the layer's own."""
        return add_scaled(y, F.linear(x, self.weight), self.strength)

    def delta(self) -> Tensor:
        return self.strength * self.weight.float()


@dataclass(frozen=True, eq=False)
class BiasShift(Branch):
    """A difference of biases, (out,); also for layers without one."""

    bias: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Added to every token."""
        return add_scaled(y, self.bias.expand_as(y), self.strength)


@dataclass(frozen=True, eq=False)
class RowScale(Branch):
    """Adds ``excess`` (out,) times the base output without bias; must be a layer's first branch."""

    excess: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """What the layer gave so far is its base output and bias."""
        base = y if layer.bias is None else y - layer.bias
        return add_scaled(y, base * self.excess, self.strength)


@dataclass(frozen=True, eq=False)
class ColumnScale(Branch):
    """Adds the base output of the input times ``excess`` (in,)."""

    excess: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:
        """A second product with the weight itself."""
        return add_scaled(y, F.linear(x * self.excess, effective(layer, x.dtype)), self.strength)


def effective(layer: Linear, dtype: torch.dtype) -> Tensor:
    """The matrix (out, in) that the layer applies, the scale of AWQ inputs included."""
    scale = None if layer.quantized_weight is None else layer.quantized_weight.input_scale
    matrix = layer.dense_weight(dtype)
    return matrix if scale is None else matrix * scale.to(dtype)


def decomposed(branch: Branch, magnitude: Tensor, layer: Linear) -> tuple[Branch, ...]:
    """DoRA: ``branch`` with its magnitude, (out,) or (out, 1) for rows, (1, in) for columns.

    Norms are of the dequantised weight and the branch at full strength, in float32; so should
    ``magnitude`` be.
    """
    rows = magnitude.shape[0] == layer.out_features
    dtype = layer.compute_dtype
    sum_of_both = effective(layer, torch.float32) + branch.delta().to(layer.device)
    norms = torch.linalg.vector_norm(sum_of_both, dim=1 if rows else 0)
    gain = magnitude.flatten().float() / norms
    excess = (gain - 1).to(dtype)
    if not rows:
        plain = cast(LowRank, branch)
        scaled: Branch = replace(plain, down=(plain.down.float() * gain).to(plain.down.dtype))
        return ColumnScale(1.0, excess), scaled
    if isinstance(branch, LowRank):
        scaled = replace(branch, up=(branch.up.float() * gain[:, None]).to(branch.up.dtype))
    else:
        scaled = replace(cast(Kronecker | Hadamard, branch), gain=gain.to(dtype))
    return RowScale(1.0, excess), scaled


def ordered(branches: list[Branch]) -> tuple[Branch, ...]:
    """The branches of one layer, with all its row scales as one and in front."""
    rows = [b for b in branches if isinstance(b, RowScale)]
    others = [b for b in branches if not isinstance(b, RowScale)]
    if len(rows) > 1:
        rows = [RowScale(1.0, torch.stack([b.strength * b.excess for b in rows]).sum(0))]
    return (*rows, *others)


def _gained(y: Tensor, gain: Tensor | None) -> Tensor:
    return y if gain is None else y * gain
