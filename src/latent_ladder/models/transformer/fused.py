"""Parts of a transformer block in one kernel each, instead of up to ten operations.

Each function computes in float32 and rounds once, so it is nearer to the exact result than the
plain operations in 16 bits are. The kernels need Triton; without it, see :func:`reason_against`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


@cache
def _kernels() -> Any:
    return import_module("latent_ladder.models.transformer.triton_kernels")


def reason_against(device: torch.device) -> str | None:
    """Reason why the kernels cannot run on a device, ``None`` if they can."""
    if device.type not in ("cuda", "xpu"):
        return f"Triton has no kernels for {device.type}"
    return None if find_spec("triton") is not None else "Triton is not installed"


def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write ``rms_norm(x) * scale + shift`` into ``out``.

    ``x``, ``out`` (rows, tokens, D) with the last axis contiguous; ``scale``, ``shift``
    (1 or rows, D).
    """
    rows, tokens, dim = x.shape
    kernels = _kernels()
    kernels.norm_modulate_kernel[(rows * tokens,)](
        x, scale, shift, out,
        tokens, dim, eps,
        x.stride(0), x.stride(1), out.stride(0), out.stride(1),
        _row_stride(scale, rows), _row_stride(shift, rows),
        BLOCK=_power_of_2(dim),
    )  # fmt: skip
    return out


def norm_rotate(x: Tensor, weight: Tensor, eps: float, rotation: Tensor) -> Tensor:
    """Normalise queries or keys over all heads, scale by ``weight`` (D,) and rotate each head.

    ``x`` (rows, tokens, D); ``rotation`` complex64 (1 or rows, tokens, heads, head_dim / 2), its
    last two axes contiguous. Returns (rows, tokens, heads, head_dim); channel i of a head is paired
    with channel i + head_dim / 2 and both stay where they are.
    """
    rows, tokens, dim = x.shape
    heads, half = rotation.shape[2:]
    out = torch.empty(rows, tokens, heads, 2 * half, dtype=x.dtype, device=x.device)
    table = torch.view_as_real(rotation)
    kernels = _kernels()
    kernels.norm_rotate_kernel[(rows * tokens,)](
        x, weight, table, out,
        tokens, dim, half, eps,
        x.stride(0), x.stride(1), _row_stride(table, rows), table.stride(1),
        BLOCK=_power_of_2(dim // 2),
    )  # fmt: skip
    return out


def gate_heads_(x: Tensor, logits: Tensor) -> Tensor:
    """Multiply ``x`` (rows, tokens, heads, head_dim) by ``2 sigmoid(logits)``, in place.

    ``logits`` (rows, tokens, heads), contiguous; the last axis of ``x`` is contiguous.
    """
    rows, tokens, heads, width = x.shape
    kernels = _kernels()
    kernels.gate_heads_kernel[(rows * tokens, heads)](
        x, logits.contiguous(),
        tokens, heads, width,
        x.stride(0), x.stride(1), x.stride(2),
        BLOCK=_power_of_2(width),
    )  # fmt: skip
    return x


def _row_stride(per_row: Tensor, rows: int) -> int:
    """Stride between rows; 0 where one entry is for all rows."""
    return 0 if len(per_row) == 1 and rows > 1 else per_row.stride(0)


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
