"""Matrix products of NVFP4 by NVFP4 on NVIDIA cards from Blackwell on.

Both factors are pairs of e2m1 with an e4m3 scale for each 16 numbers. The input is rounded here,
with one more scale per token, so that a token's result does not depend on the other tokens. A
byte's first number is in its high four bits, as in ComfyUI's files: a product is the same for
either order, as long as both factors have the same one.

Sources of the layouts: OCP Microscaling (e2m1), cuBLAS block scaling factors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_ladder.models.accelerator import has_fp4_products
from latent_ladder.models.weights.dequantize import swizzle
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

BLOCK = 16
E2M1_MAX, E4M3_MAX = 6.0, 448.0
SMALLEST_SCALE = 2.0**-9
"""Smallest number above zero in e4m3."""
_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Middles between neighbouring numbers of e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6."""

Product = Callable[[Tensor, Tensor, Tensor, Tensor, torch.dtype], Tensor]
"""Product of packed numbers (m, K / 2) and (n, K / 2), both uint8, with swizzled scales of each;
returns (m, n) of the dtype."""


def reason_against(device: torch.device) -> str | None:
    """Reason why a device cannot multiply NVFP4, ``None`` if it can."""
    if not has_fp4_products(device):
        return "they need an NVIDIA card of compute capability 10.0 (Blackwell) or later"
    return None if _tried(device) else "this PyTorch or driver has no NVFP4 products"


def supports_nvfp4(x: Tensor, weight: QuantizedTensor) -> bool:
    """Return True if :func:`nvfp4_linear` can run on the device of ``x`` with this weight.

    Only in bfloat16: before the scales of tokens are applied, float16 would overflow.
    """
    return (
        weight.format == "nvfp4"
        and x.dtype == torch.bfloat16
        and x.device.type == "cuda"
        and reason_against(x.device) is None
    )


def scaled_product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor,
                   dtype: torch.dtype) -> Tensor:  # fmt: skip
    """The :data:`Product` of cuBLAS."""
    pairs = torch.float4_e2m1fn_x2
    y: Tensor = torch._scaled_mm(
        a.view(pairs),
        b.view(pairs).t(),
        scale_a=a_scale.view(torch.float8_e4m3fn),
        scale_b=b_scale.view(torch.float8_e4m3fn),
        out_dtype=dtype,
    )
    return y


@cache
def _tried(device: torch.device) -> bool:
    """True if a small product runs on the device."""
    numbers = torch.zeros(128, 32, dtype=torch.uint8, device=device)
    scales = torch.zeros(512, dtype=torch.uint8, device=device)
    try:
        scaled_product(numbers, numbers, scales, scales, torch.bfloat16)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    return True


def quantize_nvfp4(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round ``x`` (tokens, K) to NVFP4; K is a multiple of 16.

    Returns packed numbers, uint8 (tokens, K / 2), scales of blocks, e4m3 (tokens, K / 16), and
    scales of tokens, float32 (tokens, 1). The number is e2m1 x both scales; e2m1 is rounded to
    nearest, ties to even.
    """
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1)
    per_token = (largest.amax(-1, keepdim=True) / (E2M1_MAX * E4M3_MAX)).clamp_min(1e-30)
    scale = (largest / (E2M1_MAX * per_token)).clamp(SMALLEST_SCALE, E4M3_MAX)
    scale = scale.to(torch.float8_e4m3fn)
    numbers = blocks / (scale.float() * per_token)[..., None]
    code = torch.bucketize(numbers.abs(), _borders(x.device)).to(torch.uint8)
    code |= torch.signbit(numbers).to(torch.uint8) << 3
    high, low = code.flatten(-2).unflatten(-1, (-1, 2)).unbind(-1)
    return high << 4 | low, scale, per_token


@cache
def _borders(device: torch.device) -> Tensor:
    """Largest number that is rounded to each of e2m1 but the last; ties go to even codes."""
    middles = torch.tensor(_MIDDLES)
    below = torch.nextafter(middles, torch.zeros(()))
    odd = torch.arange(len(_MIDDLES)) % 2 == 1
    return torch.where(odd, below, middles).to(device)


def nvfp4_linear(
    x: Tensor, weight: QuantizedTensor, bias: Tensor | None, product: Product = scaled_product
) -> Tensor:
    """Compute ``x W^T + b`` (..., out) with ``x`` (..., in) rounded to NVFP4."""
    rows, columns = weight.shape
    packed, scale = weight.parts["weight"].view(torch.uint8), weight.parts["weight_scale"]
    flat = x.reshape(-1, columns)
    padded = F.pad(flat, (0, 2 * packed.shape[1] - columns))
    numbers, block_scale, per_token = quantize_nvfp4(padded)
    if not weight.options.get("swizzled", True):
        scale = swizzle(scale)
    y = product(
        numbers, packed, swizzle(block_scale), scale.contiguous().view(torch.uint8).view(-1),
        x.dtype,
    )[:, :rows]  # fmt: skip
    factor = per_token * weight.parts["weight_scale_2"].float().reshape(())
    exact = y.float() * factor
    if bias is not None:
        exact += bias
    return exact.to(x.dtype).view(*x.shape[:-1], rows)
