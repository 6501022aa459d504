"""Triton kernels of :mod:`.fused`; a program per token. Imported only where they are used."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Pointers and strides have no types that Python could check.
# mypy: disable-error-code="no-untyped-call,untyped-decorator"


@triton.jit
def norm_modulate_kernel(  # noqa: PLR0913
    x: Any, scale: Any, shift: Any, out: Any,
    tokens: Any, dim: Any, eps: Any,
    x_row: Any, x_token: Any, out_row: Any, out_token: Any, scale_row: Any, shift_row: Any,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """RMS norm of a token, times a scale, plus a shift."""
    program = tl.program_id(0).to(tl.int64)
    row, token = program // tokens, program % tokens
    channel = tl.arange(0, BLOCK)
    inside = channel < dim
    value = tl.load(x + row * x_row + token * x_token + channel, mask=inside, other=0.0)
    value = value.to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / dim + eps)
    factor = tl.load(scale + row * scale_row + channel, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + row * shift_row + channel, mask=inside, other=0.0).to(tl.float32)
    result = (value * factor + offset).to(out.dtype.element_ty)
    tl.store(out + row * out_row + token * out_token + channel, result, mask=inside)


@triton.jit
def norm_rotate_kernel(  # noqa: PLR0913
    x: Any, weight: Any, table: Any, out: Any,
    tokens: Any, dim: Any, half: Any, eps: Any,
    x_row: Any, x_token: Any, table_row: Any, table_token: Any,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """RMS norm of a token over all heads, times a weight, and the rotation of each head."""
    program = tl.program_id(0).to(tl.int64)
    row, token = program // tokens, program % tokens
    pair = tl.arange(0, BLOCK)
    inside = pair < dim // 2
    first = (pair // half) * 2 * half + pair % half
    second = first + half
    start = x + row * x_row + token * x_token
    a = tl.load(start + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(start + second, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / dim + eps)
    a = a * inverse * tl.load(weight + first, mask=inside, other=0.0).to(tl.float32)
    b = b * inverse * tl.load(weight + second, mask=inside, other=0.0).to(tl.float32)
    angle = table + row * table_row + token * table_token + 2 * pair
    cos = tl.load(angle, mask=inside, other=0.0)
    sin = tl.load(angle + 1, mask=inside, other=0.0)
    target = out + program * dim
    kind = out.dtype.element_ty
    tl.store(target + first, (a * cos - b * sin).to(kind), mask=inside)
    tl.store(target + second, (b * cos + a * sin).to(kind), mask=inside)


@triton.jit
def gate_heads_kernel(  # noqa: PLR0913
    x: Any, logits: Any,
    tokens: Any, heads: Any, width: Any,
    x_row: Any, x_token: Any, x_head: Any,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Multiply one head of a token by 2 sigmoid(logit)."""
    program = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row, token = program // tokens, program % tokens
    gate = 2.0 * tl.sigmoid(tl.load(logits + program * heads + head).to(tl.float32))
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    place = x + row * x_row + token * x_token + head * x_head + channel
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32) * gate
    tl.store(place, value.to(x.dtype.element_ty), mask=inside)
