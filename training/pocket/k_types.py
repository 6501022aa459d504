"""Encoders of GGUF's K types, which gguf-py only decodes: every weight to the nearest level.

llama.cpp searches for scales that fit better, so files made by it err a little less. Layouts:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. Each takes float32 rows whose length
is a multiple of 256 and gives their bytes.
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
    q, scales, minima, halves = _with_minima(x, levels=3, top=15)
    return _joined(rows, scales | minima << 4, _two_bits(q), halves)


def q3_k(rows: Floats) -> Bytes:
    """16 groups of 16: q * d * scale; q from -4 to 3, scale of 6 bits around 32."""
    x = rows.reshape(-1, 16, 16)
    q, scales, d = _signed(x, bits=3, top=31)
    scales = (scales + 32).astype(np.uint8)
    low = (scales & 15)[:, :8] | (scales & 15)[:, 8:] << 4
    upper = (scales >> 4).reshape(-1, 4, 4)
    high = np.bitwise_or.reduce([upper[:, k] << 2 * k for k in range(4)])
    return _joined(rows, _bits(q >> 2), _two_bits(q & 3), low, high, d)


def q4_k(rows: Floats) -> Bytes:
    """8 groups of 32: q * d * scale - d_min * min; q of 4 bits, scale and min of 6."""
    q, scales, minima, halves = _with_minima(rows.reshape(-1, 8, 32), levels=15, top=63)
    return _joined(rows, halves, _six_bits(scales, minima), _nibbles(q))


def q5_k(rows: Floats) -> Bytes:
    """As Q4_K with q of 5 bits."""
    q, scales, minima, halves = _with_minima(rows.reshape(-1, 8, 32), levels=31, top=63)
    return _joined(rows, halves, _six_bits(scales, minima), _bits(q >> 4), _nibbles(q & 15))


def q6_k(rows: Floats) -> Bytes:
    """16 groups of 16: q * d * scale; q from -32 to 31, scale of 8 bits."""
    q, scales, d = _signed(rows.reshape(-1, 16, 16), bits=6, top=127)
    parts = q.reshape(-1, 2, 4, 32)
    low = (parts & 15)[:, :, :2] | (parts & 15)[:, :, 2:] << 4
    high = np.bitwise_or.reduce([(parts >> 4)[:, :, k] << 2 * k for k in range(4)])
    return _joined(rows, low, high, scales.astype(np.int8).view(np.uint8), d)


ENCODERS: Mapping[str, Callable[[Floats], Bytes]] = {
    "q2_k": q2_k, "q3_k": q3_k, "q4_k": q4_k, "q5_k": q5_k, "q6_k": q6_k,
}  # fmt: skip


def _with_minima(x: Floats, levels: int, top: int) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """q, scales and minima of every group, and the two float16 of every block."""
    low = np.minimum(x.min(-1), 0)
    step = (x.max(-1) - low) / levels
    d, d_min = (_half(v.max(-1) / top) for v in (step, -low))
    scales, minima = (
        _nearest(step / _safe(d)[:, None], top),
        _nearest(-low / _safe(d_min)[:, None], top),
    )
    unit, base = d[:, None] * scales, d_min[:, None] * minima
    q = _nearest((x + base[..., None]) / _safe(unit)[..., None], levels)
    return q, scales, minima, np.stack([d, d_min], 1).astype(np.float16).view(np.uint8)


def _signed(x: Floats, bits: int, top: int) -> tuple[Bytes, NDArray[np.int64], Bytes]:
    """q with its offset, signed scales of every group, the float16 of every block.

    The greatest number of a group becomes the lowest level, of which there is one more.
    """
    half = 1 << bits - 1
    at = np.abs(x).argmax(-1)
    step = -np.take_along_axis(x, at[..., None], -1)[..., 0] / half
    d = _half(np.abs(step).max(-1) / top)
    scales = np.rint(step / _safe(d)[:, None]).astype(np.int64)
    unit = _safe(d[:, None] * scales)
    q = np.clip(np.rint(x / unit[..., None]), -half, half - 1) + half
    return q.astype(np.uint8), scales, d.astype(np.float16)[:, None].view(np.uint8)


def _half(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)


def _safe(x: Floats) -> Floats:
    return np.where(x == 0, np.float32(1), x)


def _nearest(x: Floats, top: int) -> Bytes:
    return np.clip(np.rint(x), 0, top).astype(np.uint8)


def _bits(q: Bytes) -> Bytes:
    """Bit k of byte n is weight n of the k-th 32: (blocks, 32)."""
    parts = q.reshape(-1, 8, 32)
    return np.bitwise_or.reduce([parts[:, k] << k for k in range(8)])


def _two_bits(q: Bytes) -> Bytes:
    parts = q.reshape(-1, 2, 4, 32)
    return np.bitwise_or.reduce([parts[:, :, k] << 2 * k for k in range(4)])


def _nibbles(q: Bytes) -> Bytes:
    parts = q.reshape(-1, 4, 2, 32)
    return parts[:, :, 0] | parts[:, :, 1] << 4


def _six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Eight scales and eight minima in 12 bytes."""
    first, later = slice(0, 4), slice(4, 8)
    parts = [
        scales[:, first] | (scales[:, later] >> 4) << 6,
        minima[:, first] | (minima[:, later] >> 4) << 6,
        (scales[:, later] & 15) | (minima[:, later] & 15) << 4,
    ]
    return np.concatenate(parts, 1)


def _joined(rows: Floats, *parts: Bytes) -> Bytes:
    blocks = np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
    return np.ascontiguousarray(blocks).reshape(len(rows), -1)
