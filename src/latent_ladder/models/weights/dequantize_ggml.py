"""Dequantisation of GGML block types: Q4_0 to Q8_0 and the K types.

Each decoder reads blocks, uint8 (n, bytes), and fills a float32 tensor (n, weights). The product
of a float16 scale, a 6-bit scale and a 6-bit weight has at most 23 significant bits, so all but
the final subtraction of a minimum is exact, and results equal those of any other decoder that
computes in float32. Layouts: ``ggml-common.h`` of ggml; tested against ``gguf.quants`` of gguf-py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Decode = Callable[[Tensor, Tensor], None]


class GgmlBlock(NamedTuple):
    """GGML block type: ``weights`` and ``bytes`` per block, offsets of its float16 scales."""

    weights: int
    bytes: int
    float16_offsets: tuple[int, ...]
    decode: Decode


def _read_float16(blocks: Tensor, at: int) -> Tensor:
    """Read the float16 at byte ``at`` of each block as float32, (n, 1)."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def _read_words(blocks: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """Read bytes ``start`` to ``stop`` as little-endian int32 words, to shift four at a time."""
    words = blocks[:, start:stop].clone(memory_format=torch.contiguous_format)
    return words.view(torch.int32).unbind(1)


def _to_bytes(words: list[Tensor]) -> Tensor:
    return torch.stack(words, 1).view(torch.uint8)


@cache
def _bit_table(device: torch.device) -> Tensor:
    """Table with an int64 for each byte value: byte k of it is 16 if bit k is set, else 0."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return ((bits & 1) << 4).to(torch.uint8).view(torch.int64).view(-1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """Expand the fifth bits of weights, (n, 4) bytes, to (n, 32) bytes of 0 or 16."""
    table = _bit_table(packed.device)
    expanded = torch.index_select(table, 0, packed.flatten().int())
    return expanded.view(torch.uint8).view(len(packed), 32)


def _split_nibbles(packed: Tensor, dim: int) -> Tensor:
    """Split bytes into low and high nibbles along a new ``dim``."""
    return torch.stack((packed & 15, packed >> 4), dim)


def _split_bit_pairs(packed: Tensor) -> Tensor:
    """Split (n, 2, 32) bytes into fields of two bits, (n, 2, 4, 32), lowest bits first."""
    return torch.stack([(packed >> at) & 3 for at in (0, 2, 4, 6)], 2)


def _split_bits(packed: Tensor) -> Tensor:
    """Split (n, 32) bytes into single bits, (n, 8, 32), lowest bit first."""
    return torch.stack([(packed >> k) & 1 for k in range(8)], 1)


def _scale_groups(q: Tensor, scale: Tensor, out: Tensor) -> None:
    """Compute ``out = q * scale``; ``scale`` (n, groups), each for an equal part of a block."""
    out.view(-1).copy_(q.view(-1))
    out.view(*scale.shape, -1).mul_(scale[..., None])


def _subtract_minima(out: Tensor, minima: Tensor) -> None:
    """Subtract ``minima`` (n, groups) from ``out``, each from an equal part of a block."""
    out.view(*minima.shape, -1).sub_(minima[..., None])


def _to_signed(q: Tensor, centre: int) -> Tensor:
    """Convert unsigned bytes around ``centre`` to signed bytes around zero, in place."""
    return q.sub_(centre).view(torch.int8)


# --- 32 weights to a block ------------------------------------------------------------------------


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    _scale_groups(_to_signed(_split_nibbles(blocks[:, 2:], 1), 8), _read_float16(blocks, 0), out)


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    _scale_groups(_split_nibbles(blocks[:, 4:], 1), _read_float16(blocks, 0), out)
    out += _read_float16(blocks, 2)


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    q = _split_nibbles(blocks[:, 6:], 1).view(-1, 32) | _fifth_bits(blocks[:, 2:6])
    _scale_groups(_to_signed(q, 16), _read_float16(blocks, 0), out)


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    q = _split_nibbles(blocks[:, 8:], 1).view(-1, 32) | _fifth_bits(blocks[:, 4:8])
    _scale_groups(q, _read_float16(blocks, 0), out)
    out += _read_float16(blocks, 2)


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    torch.mul(blocks[:, 2:].view(torch.int8), _read_float16(blocks, 0), out=out)


# --- 256 weights to a block -----------------------------------------------------------------------


def _q2_k(blocks: Tensor, out: Tensor) -> None:
    """Q2_K: 16 groups of 16 weights; 4-bit scales and minima, 2-bit weights."""
    scales = blocks[:, :16]
    q = _split_bit_pairs(blocks[:, 16:80].view(-1, 2, 32))
    _scale_groups(q, _read_float16(blocks, 80) * (scales & 15), out)
    _subtract_minima(out, _read_float16(blocks, 82) * (scales >> 4))


def _q3_k(blocks: Tensor, out: Tensor) -> None:
    """Q3_K: 16 groups of 16 weights; signed 6-bit scales, 3-bit weights (third bit separate)."""
    q = _split_bit_pairs(blocks[:, 32:96].view(-1, 2, 32)).view(-1, 8, 32)
    q |= _split_bits(blocks[:, :32]) << 2
    first, second, upper = _read_words(blocks, 96, 108)
    nibble, pair = 0x0F0F0F0F, 0x03030303
    words = [
        ((low >> 4 * (k // 2)) & nibble) | (((upper >> 2 * k) & pair) << 4)
        for k, low in enumerate((first, second, first, second))
    ]
    _scale_groups(
        _to_signed(q, 4), _read_float16(blocks, 108) * _to_signed(_to_bytes(words), 32), out
    )


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of Q4_K and Q5_K, (n, 8) each: 6-bit numbers times float16 scales."""
    low, minimum, both = _read_words(blocks, 4, 16)
    six, nibble, upper = 0x3F3F3F3F, 0x0F0F0F0F, 0x30303030
    scales = _to_bytes([low & six, (both & nibble) | ((low >> 2) & upper)])
    minima = _to_bytes([minimum & six, ((both >> 4) & nibble) | ((minimum >> 2) & upper)])
    return _read_float16(blocks, 0) * scales, _read_float16(blocks, 2) * minima


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    """Q4_K: 8 groups of 32 weights; 6-bit scales and minima, 4-bit weights."""
    scales, minima = _scales_and_minima(blocks)
    _scale_groups(_split_nibbles(blocks[:, 16:].view(-1, 4, 32), 2), scales, out)
    _subtract_minima(out, minima)


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    """Q5_K: as Q4_K; the fifth bits are in 32 separate bytes, bit k for group k."""
    scales, minima = _scales_and_minima(blocks)
    q = _split_nibbles(blocks[:, 48:].view(-1, 4, 32), 2).view(-1, 8, 32)
    q |= _split_bits(blocks[:, 16:48]) << 4
    _scale_groups(q, scales, out)
    _subtract_minima(out, minima)


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    """Q6_K: 16 groups of 16 weights; 8-bit scales, 6-bit weights (upper two bits separate)."""
    q = _split_nibbles(blocks[:, :128].view(-1, 2, 64), 2).view(-1, 2, 4, 32)
    q |= _split_bit_pairs(blocks[:, 128:192].view(-1, 2, 32)) << 4
    scales = _read_float16(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    _scale_groups(_to_signed(q, 32), scales, out)


GGML_BLOCKS: Mapping[str, GgmlBlock] = {
    "q4_0": GgmlBlock(32, 18, (0,), _q4_0),
    "q4_1": GgmlBlock(32, 20, (0, 2), _q4_1),
    "q5_0": GgmlBlock(32, 22, (0,), _q5_0),
    "q5_1": GgmlBlock(32, 24, (0, 2), _q5_1),
    "q8_0": GgmlBlock(32, 34, (0,), _q8_0),
    "q2_k": GgmlBlock(256, 84, (80, 82), _q2_k),
    "q3_k": GgmlBlock(256, 110, (108,), _q3_k),
    "q4_k": GgmlBlock(256, 144, (0, 2), _q4_k),
    "q5_k": GgmlBlock(256, 176, (0, 2), _q5_k),
    "q6_k": GgmlBlock(256, 210, (208,), _q6_k),
}
"""GGML block types by format name."""


def scales_are_finite(blocks: Tensor, format: str) -> bool:
    """Return True if no float16 scale of any block is NaN or infinite."""
    return not any(
        bool((blocks[:, at : at + 2].view(torch.int16) & 0x7C00).eq(0x7C00).any())
        for at in GGML_BLOCKS[format].float16_offsets
    )
