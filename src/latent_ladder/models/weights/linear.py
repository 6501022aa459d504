"""Linear layer with a weight in any stored form, and adapter branches that leave it unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.accelerator import has_fp8_products
from latent_ladder.models.weights.nvfp4_products import nvfp4_linear, supports_nvfp4
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

FP8_MAX = 448.0


@dataclass(frozen=True, eq=False)
class Branch:
    """Adapter branch: adds ``strength`` times a change to the output of a :class:`Linear`.

    Kinds other than :class:`LowRank` are in :mod:`latent_ladder.models.lora.adapters`. The tensors
    of a branch are dataclass fields, so code that moves a layer can find and move them.
    """

    strength: float

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:
        """Add the branch for input ``x`` (..., in) to the layer's output ``y`` (..., out).

        ``y`` is the output so far: base output and the branches before this one. It may be
        changed in place without autograd.
        """
        raise NotImplementedError

    def delta(self) -> Tensor:
        """Equivalent change of the weight, (out, in) float32."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class LowRank(Branch):
    """Low-rank branch (LoRA): ``up @ down`` with ``down`` (r, in) and ``up`` (out, r)."""

    down: Tensor
    up: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Two low-rank products; the second one is added in place without autograd."""
        low = F.linear(x, self.down)
        if torch.is_grad_enabled():
            return y + self.strength * F.linear(low, self.up)
        y.view(-1, y.shape[-1]).addmm_(
            low.view(-1, low.shape[-1]), self.up.t(), alpha=self.strength
        )
        return y

    def delta(self) -> Tensor:
        """Return ``strength * up @ down``."""
        return self.strength * (self.up.float() @ self.down.float())


def add_scaled(y: Tensor, change: Tensor, strength: float) -> Tensor:
    """Return ``y + strength * change``, computed in place without autograd."""
    if torch.is_grad_enabled():
        return y + strength * change
    return y.add_(change, alpha=strength)


class Linear(nn.Module):
    """Linear layer ``y = x W^T + b`` plus its adapter ``branches``.

    The base weight is never changed, so branches can be switched without cost or loss of
    precision, for any stored form of the weight. The weight is either ``weight`` (a float tensor)
    or ``quantized_weight``, which is dequantised to the dtype of the input at each call; the
    other one is ``None``.

    ``native_fp8`` (default off) multiplies fp8 by fp8 if weight and device support it: half the
    time of bf16 on recent GPUs, but the input is rounded to fp8 too. ``native_fp4`` (default off)
    is the same for NVFP4. ``fused`` rounds the input of an fp8 product in one Triton kernel.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.quantized_weight: QuantizedTensor | None = None
        self.branches: tuple[Branch, ...] = ()
        self.native_fp8 = False
        self.native_fp4 = False
        self.fused = False
        self._dtype: torch.dtype | None = None
        self._keeps_dense = False
        self._dense: Tensor | None = None

    @property
    def in_features(self) -> int:
        """Number of input channels."""
        return int(
            (self.weight if self.quantized_weight is None else self.quantized_weight).shape[1]
        )

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return int(
            (self.weight if self.quantized_weight is None else self.quantized_weight).shape[0]
        )

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return (self.weight if self.quantized_weight is None else self.quantized_weight).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of inputs and outputs; the weight may be stored in another dtype."""
        return self.weight.dtype if self._dtype is None else self._dtype

    def set_weight(self, weight: Tensor | QuantizedTensor, compute_dtype: torch.dtype) -> None:
        """Set ``weight`` (out, in) without converting it; computation is in ``compute_dtype``."""
        self._dtype = compute_dtype
        if isinstance(weight, QuantizedTensor):
            self.register_parameter("weight", None)
            self.quantized_weight = weight
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """Weight (out, in) in ``dtype``, without the input scale that AWQ files have."""
        if self._dense is not None and self._dense.dtype == dtype:
            return self._dense
        weight = self.weight if self.quantized_weight is None else self.quantized_weight
        dense = (
            weight.dequantize(dtype) if isinstance(weight, QuantizedTensor) else weight.to(dtype)
        )
        self._dense = dense if self._keeps_dense else None
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        y = self._base_output(x)
        for branch in self.branches:
            y = branch.add_to(y, x, self)
        return y

    def _base_output(self, x: Tensor) -> Tensor:
        quantized = self.quantized_weight
        if quantized is None:
            return F.linear(x, self.dense_weight(x.dtype), self.bias)
        if quantized.input_scale is not None:
            x = x * quantized.input_scale.to(x.dtype)
        if self.native_fp8 and supports_native_fp8(x, quantized):
            return native_fp8_linear(x, quantized, self.bias, self.fused)
        if self.native_fp4 and supports_nvfp4(x, quantized):
            return nvfp4_linear(x, quantized, self.bias)
        return F.linear(x, self.dense_weight(x.dtype), self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Called by `to`, `cuda` and `double`: a quantised weight is moved, but never converted.
        if self._dtype is not None:
            probe = fn(torch.empty(0, dtype=self._dtype, device=self.device))
            self._dtype = probe.dtype
            if self.quantized_weight is not None:
                self.quantized_weight = self.quantized_weight.to(probe.device)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


@contextmanager
def decode_once(*modules: nn.Module) -> Iterator[None]:
    """Keep what is decoded of the weights in ``modules`` until the ``with`` block ends.

    A weight that is stored in another form than the compute dtype is otherwise decoded in each
    call. The results are the same bits.
    """
    layers = [
        layer for module in modules for layer in module.modules() if isinstance(layer, Linear)
    ]
    for layer in layers:
        layer._keeps_dense = True
    try:
        yield
    finally:
        for layer in layers:
            layer._keeps_dense, layer._dense = False, None


def supports_native_fp8(x: Tensor, weight: QuantizedTensor) -> bool:
    """Return True if ``torch._scaled_mm`` supports input and weight.

    It needs bf16 input, an fp8 (e4m3) weight with one scale or one per row, sizes that are
    multiples of 16, and a GPU that multiplies fp8 (:func:`has_fp8_products`).
    """
    if weight.format != "fp8_e4m3" or x.device.type != "cuda" or x.dtype != torch.bfloat16:
        return False
    if any(n % 16 for n in weight.shape) or not has_fp8_products(x.device):
        return False
    scale = weight.parts.get("weight_scale")
    if scale is None or scale.numel() == 1:
        return True
    return scale.numel() == weight.shape[0] and has_row_scales(x.device)


@cache
def _fp8_kernel() -> Any:
    return import_module("latent_ladder.models.weights.fp8_kernel")


@cache
def has_row_scales(device: torch.device) -> bool:
    """True if fp8 products on a device take a scale per row; tried once with a small product."""
    try:
        zeros = torch.zeros(16, 16, dtype=torch.float8_e4m3fn, device=device)
        ones = torch.ones(16, 1, device=device)
        torch._scaled_mm(zeros, zeros.t(), scale_a=ones, scale_b=ones.t(), out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


def native_fp8_linear(
    x: Tensor, weight: QuantizedTensor, bias: Tensor | None, fused: bool = False
) -> Tensor:
    """Compute ``x W^T + b`` (..., out) in fp8; ``x`` is scaled and rounded.

    Each token has a scale of its own where the device supports that, otherwise all have one.
    ``fused`` rounds in one Triton kernel where tokens have their own scales.
    """
    flat = x.reshape(-1, x.shape[-1])
    stored = weight.parts.get("weight_scale")
    by_row = has_row_scales(x.device)
    if fused and by_row and flat.stride(-1) == 1:
        fp8_input, scale = _fp8_kernel().quantize_tokens(flat)
    else:
        largest = flat.abs().amax(-1, keepdim=True) if by_row else flat.abs().amax()
        scale = (largest.float() / FP8_MAX).clamp_min(1e-12)
        fp8_input = (flat.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    weight_scale = scale.new_ones(()) if stored is None else stored.float()
    if by_row:
        weight_scale = weight_scale.reshape(1, -1).expand(1, weight.shape[0]).contiguous()
    else:
        weight_scale = weight_scale.reshape(())
    matrix = weight.parts["weight"].view(torch.float8_e4m3fn)
    y: Tensor = torch._scaled_mm(
        fp8_input, matrix.t(), scale_a=scale, scale_b=weight_scale, bias=bias, out_dtype=x.dtype
    )
    return y.view(*x.shape[:-1], -1)
