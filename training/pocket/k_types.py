"""Encoders of GGUF's K types, which gguf-py can only decode: every weight to the nearest level.

llama.cpp also searches for better scales, so its files have slightly smaller errors. Each encoder
takes float32 rows whose length is a multiple of 256 and returns their bytes. Layouts:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def q2_k(rows: Floats) -> Bytes:
    """16 groups of 16: q * d * scale - d_min * min; q of 2 bits, scale and min of 4."""
    x = rows.reshape(-1, 16, 16)
    q, scales, minima, halves = _quantize_with_minima(x, levels=3, top=15)
    return _join_blocks(rows, scales | minima << 4, _pack_two_bits(q), halves)


def q3_k(rows: Floats) -> Bytes:
    """16 groups of 16: q * d * scale; q from -4 to 3, scale of 6 bits around 32."""
    x = rows.reshape(-1, 16, 16)
    q, scales, d = _quantize_signed(x, bits=3, top=31)
    scales = (scales + 32).astype(np.uint8)
    low = (scales & 15)[:, :8] | (scales & 15)[:, 8:] << 4
    upper = (scales >> 4).reshape(-1, 4, 4)
    high = np.bitwise_or.reduce([upper[:, k] << 2 * k for k in range(4)])
    return _join_blocks(rows, _pack_bits(q >> 2), _pack_two_bits(q & 3), low, high, d)


def q4_k(rows: Floats) -> Bytes:
    """8 groups of 32: q * d * scale - d_min * min; q of 4 bits, scale and min of 6."""
    q, scales, minima, halves = _quantize_with_minima(rows.reshape(-1, 8, 32), levels=15, top=63)
    return _join_blocks(rows, halves, _pack_six_bits(scales, minima), _pack_nibbles(q))


def q5_k(rows: Floats) -> Bytes:
    """8 groups of 32: q * d * scale - d_min * min; q of 5 bits, scale and min of 6."""
    q, scales, minima, halves = _quantize_with_minima(rows.reshape(-1, 8, 32), levels=31, top=63)
    return _join_blocks(
        rows, halves, _pack_six_bits(scales, minima), _pack_bits(q >> 4), _pack_nibbles(q & 15)
    )


def q6_k(rows: Floats) -> Bytes:
    """16 groups of 16: q * d * scale; q from -32 to 31, scale of 8 bits."""
    q, scales, d = _quantize_signed(rows.reshape(-1, 16, 16), bits=6, top=127)
    parts = q.reshape(-1, 2, 4, 32)
    low = (parts & 15)[:, :, :2] | (parts & 15)[:, :, 2:] << 4
    high = np.bitwise_or.reduce([(parts >> 4)[:, :, k] << 2 * k for k in range(4)])
    return _join_blocks(rows, low, high, scales.astype(np.int8).view(np.uint8), d)


ENCODERS: Mapping[str, Callable[[Floats], Bytes]] = {
    "q2_k": q2_k, "q3_k": q3_k, "q4_k": q4_k, "q5_k": q5_k, "q6_k": q6_k,
}  # fmt: skip


def _quantize_with_minima(x: Floats, levels: int, top: int) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """q, scales and minima of every group, and d and d_min (float16) of every block."""
    low = np.minimum(x.min(-1), 0)
    step = (x.max(-1) - low) / levels
    d, d_min = (_round_half(v.max(-1) / top) for v in (step, -low))
    scales, minima = (
        _round_to_level(step / _nonzero(d)[:, None], top),
        _round_to_level(-low / _nonzero(d_min)[:, None], top),
    )
    unit, base = d[:, None] * scales, d_min[:, None] * minima
    q = _round_to_level((x + base[..., None]) / _nonzero(unit)[..., None], levels)
    return q, scales, minima, np.stack([d, d_min], 1).astype(np.float16).view(np.uint8)


def _quantize_signed(x: Floats, bits: int, top: int) -> tuple[Bytes, NDArray[np.int64], Bytes]:
    """q plus its offset, signed scales of every group, and d (float16) of every block.

    The number of largest magnitude in a group gets the lowest level, the one without a positive
    counterpart.
    """
    half = 1 << bits - 1
    at = np.abs(x).argmax(-1)
    step = -np.take_along_axis(x, at[..., None], -1)[..., 0] / half
    d = _round_half(np.abs(step).max(-1) / top)
    scales = np.rint(step / _nonzero(d)[:, None]).astype(np.int64)
    unit = _nonzero(d[:, None] * scales)
    q = np.clip(np.rint(x / unit[..., None]), -half, half - 1) + half
    return q.astype(np.uint8), scales, d.astype(np.float16)[:, None].view(np.uint8)


def _round_half(x: Floats) -> Floats:
    """Round to float16."""
    return x.astype(np.float16).astype(np.float32)


def _nonzero(x: Floats) -> Floats:
    """Replace zeros by ones, for division."""
    return np.where(x == 0, np.float32(1), x)


def _round_to_level(x: Floats, top: int) -> Bytes:
    return np.clip(np.rint(x), 0, top).astype(np.uint8)


def _pack_bits(q: Bytes) -> Bytes:
    """Pack bits to (blocks, 32): bit k of byte n belongs to weight n of the k-th group of 32."""
    parts = q.reshape(-1, 8, 32)
    return np.bitwise_or.reduce([parts[:, k] << k for k in range(8)])


def _pack_two_bits(q: Bytes) -> Bytes:
    """Pack numbers of two bits, four to a byte."""
    parts = q.reshape(-1, 2, 4, 32)
    return np.bitwise_or.reduce([parts[:, :, k] << 2 * k for k in range(4)])


def _pack_nibbles(q: Bytes) -> Bytes:
    """Pack numbers of four bits, two to a byte."""
    parts = q.reshape(-1, 4, 2, 32)
    return parts[:, :, 0] | parts[:, :, 1] << 4


def _pack_six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Pack eight scales and eight minima of six bits into 12 bytes."""
    first, later = slice(0, 4), slice(4, 8)
    parts = [
        scales[:, first] | (scales[:, later] >> 4) << 6,
        minima[:, first] | (minima[:, later] >> 4) << 6,
        (scales[:, later] & 15) | (minima[:, later] & 15) << 4,
    ]
    return np.concatenate(parts, 1)


def _join_blocks(rows: Floats, *parts: Bytes) -> Bytes:
    blocks = np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
    return np.ascontiguousarray(blocks).reshape(len(rows), -1)
