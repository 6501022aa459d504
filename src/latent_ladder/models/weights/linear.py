"""A Linear layer whose weight may lie in any stored form, and be amended without being touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

FP8_MAX = 448.0


@dataclass(frozen=True, eq=False)
class Branch:
    """Something that amends a layer's output beside its weight, ``strength`` times.

    Forms other than :class:`LowRank` are in ``models.lora.adapters``. The fields of a
    form are its tensors, so that whoever moves a layer moves them too.
    """

    strength: float

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:
        """``y`` (..., out), what the layer gave so far for ``x`` (..., in), amended."""
        raise NotImplementedError

    def delta(self) -> Tensor:
        """What it adds to the weight, (out, in) in float32."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class LowRank(Branch):
    """``up @ down``: ``down`` (r, in), ``up`` (out, r)."""

    down: Tensor
    up: Tensor

    def add_to(self, y: Tensor, x: Tensor, layer: Linear) -> Tensor:  # noqa: ARG002
        """Two thin products, the second one added in place."""
        low = F.linear(x, self.down)
        if torch.is_grad_enabled():
            return y + self.strength * F.linear(low, self.up)
        y.view(-1, y.shape[-1]).addmm_(
            low.view(-1, low.shape[-1]), self.up.t(), alpha=self.strength
        )
        return y

    def delta(self) -> Tensor:
        """``strength * up @ down``."""
        return self.strength * (self.up.float() @ self.down.float())


def added(y: Tensor, amendment: Tensor, strength: float) -> Tensor:
    """``y + strength * amendment``, in place where no gradient is kept."""
    if torch.is_grad_enabled():
        return y + strength * amendment
    return y.add_(amendment, alpha=strength)


class Linear(nn.Module):
    """``y = x W^T + b``, amended by ``branches``.

    The base weight is never written to: switching branches costs nothing and loses no precision,
    and works whatever way the weight is stored. It is either ``weight``, numbers, or ``stored``,
    which every call decodes into the dtype of its input; the other one is ``None``. ``matrix`` is
    the one place that says how.

    ``native_fp8`` multiplies fp8 by fp8 where weight and device allow: half the time of bf16 on
    recent GPUs, and the input is rounded to fp8 as well. Off unless asked for.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.stored: QuantizedTensor | None = None
        self.branches: tuple[Branch, ...] = ()
        self.native_fp8 = False
        self._dtype: torch.dtype | None = None

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return int((self.weight if self.stored is None else self.stored).shape[1])

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return int((self.weight if self.stored is None else self.stored).shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return (self.weight if self.stored is None else self.stored).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of inputs and outputs; the weight may be stored in another."""
        return self.weight.dtype if self._dtype is None else self._dtype

    def keep(self, weight: Tensor | QuantizedTensor, compute_dtype: torch.dtype) -> None:
        """Hold ``weight`` (out, in) as it is and compute in ``compute_dtype``."""
        self._dtype = compute_dtype
        if isinstance(weight, QuantizedTensor):
            self.register_parameter("weight", None)
            self.stored = weight
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in ``dtype``, without the scale of the input that AWQ files have."""
        return self.weight.to(dtype) if self.stored is None else self.stored.dequantize(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        y = self._product(x)
        for branch in self.branches:
            y = branch.add_to(y, x, self)
        return y

    def _product(self, x: Tensor) -> Tensor:
        stored = self.stored
        if stored is None:
            return F.linear(x, self.matrix(x.dtype), self.bias)
        if stored.input_scale is not None:
            x = x * stored.input_scale.to(x.dtype)
        if self.native_fp8 and multiplies_natively(x, stored):
            return fp8_product(x, stored, self.bias)
        return F.linear(x, stored.dequantize(x.dtype), self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # `to`, `cuda`, `double`: what is stored moves, and is never converted.
        if self._dtype is not None:
            probe = fn(torch.empty(0, dtype=self._dtype, device=self.device))
            self._dtype = probe.dtype
            if self.stored is not None:
                self.stored = self.stored.to(probe.device)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def multiplies_natively(x: Tensor, stored: QuantizedTensor) -> bool:
    """Whether ``torch._scaled_mm`` takes this input and weight: fp8 with one scale, CUDA 8.9+."""
    if stored.format != "fp8_e4m3" or x.device.type != "cuda" or x.dtype != torch.bfloat16:
        return False
    scale = stored.parts.get("weight_scale")
    one_scale = scale is None or scale.numel() == 1
    aligned = not any(n % 16 for n in stored.shape)
    return one_scale and aligned and torch.cuda.get_device_capability(x.device) >= (8, 9)


def fp8_product(x: Tensor, stored: QuantizedTensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` (..., out) with the input rounded to fp8, scaled by its greatest number."""
    flat = x.reshape(-1, x.shape[-1])
    scale = (flat.abs().amax().float() / FP8_MAX).clamp_min(1e-12)
    rounded = (flat.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    weight_scale = stored.parts.get("weight_scale")
    by = scale.new_ones(()) if weight_scale is None else weight_scale.float().reshape(())
    weight = stored.parts["weight"].view(torch.float8_e4m3fn)
    y: Tensor = torch._scaled_mm(
        rounded, weight.t(), scale_a=scale, scale_b=by, bias=bias, out_dtype=x.dtype
    )
    return y.view(*x.shape[:-1], -1)
