"""GGML block types back to numbers: Q4_0 to Q8_0 and the K types.

Every decoder takes blocks, uint8 (n, bytes), and fills float32 (n, weights). The products of a
float16 scale, a 6-bit scale and a 6-bit weight have at most 23 significant bits, so everything
but the final subtraction of a minimum is exact and the results equal those of any other decoder
that computes in float32. Layouts: ggml's ``ggml-common.h``; checked against gguf-py's
``gguf.quants``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Decode = Callable[[Tensor, Tensor], None]


class Block(NamedTuple):
    """A block type: how many ``weights`` lie in how many ``bytes``, and where its float16s are."""

    weights: int
    bytes: int
    halves: tuple[int, ...]
    decode: Decode


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte ``at`` of every block as float32, (n, 1)."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def _words(blocks: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """Bytes as little-endian words, so that four of them are shifted at once."""
    words = blocks[:, start:stop].clone(memory_format=torch.contiguous_format)
    return words.view(torch.int32).unbind(1)


def _bytes(words: list[Tensor]) -> Tensor:
    return torch.stack(words, 1).view(torch.uint8)


@cache
def _bit_table(device: torch.device) -> Tensor:
    """For every byte an int64 whose k-th byte is 16 where bit k is set."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return ((bits & 1) << 4).to(torch.uint8).view(torch.int64).view(-1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """(n, 4) bytes, a bit per weight, to (n, 32) bytes that are 0 or 16."""
    table = _bit_table(packed.device)
    spread = torch.index_select(table, 0, packed.flatten().int())
    return spread.view(torch.uint8).view(len(packed), 32)


def _nibbles(packed: Tensor, dim: int) -> Tensor:
    """The low and the high nibbles, side by side along a new ``dim``."""
    return torch.stack((packed & 15, packed >> 4), dim)


def _pairs(packed: Tensor) -> Tensor:
    """(n, 2, 32) bytes to (n, 2, 4, 32): the two bits at 0, at 2, at 4 and at 6."""
    return torch.stack([(packed >> at) & 3 for at in (0, 2, 4, 6)], 2)


def _bits(packed: Tensor) -> Tensor:
    """(n, 32) bytes to (n, 8, 32): bit k of every byte."""
    return torch.stack([(packed >> k) & 1 for k in range(8)], 1)


def _scaled(q: Tensor, by: Tensor, out: Tensor) -> None:
    """``out = q * by``, each of the (n, groups) scales for its equal share of a block."""
    out.view(-1).copy_(q.view(-1))
    out.view(*by.shape, -1).mul_(by[..., None])


def _minus(out: Tensor, low: Tensor) -> None:
    out.view(*low.shape, -1).sub_(low[..., None])


def _signed(q: Tensor, centre: int) -> Tensor:
    """Unsigned bytes around ``centre`` as signed ones around zero, in place."""
    return q.sub_(centre).view(torch.int8)


# --- 32 weights to a block ------------------------------------------------------------------------


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    _scaled(_signed(_nibbles(blocks[:, 2:], 1), 8), _half(blocks, 0), out)


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    _scaled(_nibbles(blocks[:, 4:], 1), _half(blocks, 0), out)
    out += _half(blocks, 2)


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    q = _nibbles(blocks[:, 6:], 1).view(-1, 32) | _fifth_bits(blocks[:, 2:6])
    _scaled(_signed(q, 16), _half(blocks, 0), out)


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    q = _nibbles(blocks[:, 8:], 1).view(-1, 32) | _fifth_bits(blocks[:, 4:8])
    _scaled(q, _half(blocks, 0), out)
    out += _half(blocks, 2)


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    torch.mul(blocks[:, 2:].view(torch.int8), _half(blocks, 0), out=out)


# --- 256 weights to a block -----------------------------------------------------------------------


def _q2_k(blocks: Tensor, out: Tensor) -> None:
    """16 groups of 16: 4-bit scales and minima, weights of two bits."""
    scales = blocks[:, :16]
    q = _pairs(blocks[:, 16:80].view(-1, 2, 32))
    _scaled(q, _half(blocks, 80) * (scales & 15), out)
    _minus(out, _half(blocks, 82) * (scales >> 4))


def _q3_k(blocks: Tensor, out: Tensor) -> None:
    """16 groups of 16: 6-bit scales around zero, two bits and, apart, a third."""
    q = _pairs(blocks[:, 32:96].view(-1, 2, 32)).view(-1, 8, 32)
    q |= _bits(blocks[:, :32]) << 2
    first, second, upper = _words(blocks, 96, 108)
    nibble, pair = 0x0F0F0F0F, 0x03030303
    words = [
        ((low >> 4 * (k // 2)) & nibble) | (((upper >> 2 * k) & pair) << 4)
        for k, low in enumerate((first, second, first, second))
    ]
    _scaled(_signed(q, 4), _half(blocks, 108) * _signed(_bytes(words), 32), out)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and minima of Q4_K and Q5_K, times their float16s: (n, 8) each."""
    low, minimum, both = _words(blocks, 4, 16)
    six, nibble, upper = 0x3F3F3F3F, 0x0F0F0F0F, 0x30303030
    scales = _bytes([low & six, (both & nibble) | ((low >> 2) & upper)])
    minima = _bytes([minimum & six, ((both >> 4) & nibble) | ((minimum >> 2) & upper)])
    return _half(blocks, 0) * scales, _half(blocks, 2) * minima


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    """8 groups of 32: scales and minima, weights of four bits."""
    by, low = _scales_and_minima(blocks)
    _scaled(_nibbles(blocks[:, 16:].view(-1, 4, 32), 2), by, out)
    _minus(out, low)


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    """As Q4_K; bit k of 32 bytes apart is the fifth bit of group k."""
    by, low = _scales_and_minima(blocks)
    q = _nibbles(blocks[:, 48:].view(-1, 4, 32), 2).view(-1, 8, 32)
    q |= _bits(blocks[:, 16:48]) << 4
    _scaled(q, by, out)
    _minus(out, low)


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    """16 groups of 16: 8-bit scales, four bits and, apart, two more."""
    q = _nibbles(blocks[:, :128].view(-1, 2, 64), 2).view(-1, 2, 4, 32)
    q |= _pairs(blocks[:, 128:192].view(-1, 2, 32)) << 4
    by = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    _scaled(_signed(q, 32), by, out)


BLOCKS: Mapping[str, Block] = {
    "q4_0": Block(32, 18, (0,), _q4_0),
    "q4_1": Block(32, 20, (0, 2), _q4_1),
    "q5_0": Block(32, 22, (0,), _q5_0),
    "q5_1": Block(32, 24, (0, 2), _q5_1),
    "q8_0": Block(32, 34, (0,), _q8_0),
    "q2_k": Block(256, 84, (80, 82), _q2_k),
    "q3_k": Block(256, 110, (108,), _q3_k),
    "q4_k": Block(256, 144, (0, 2), _q4_k),
    "q5_k": Block(256, 176, (0, 2), _q5_k),
    "q6_k": Block(256, 210, (208,), _q6_k),
}
"""The block types by format name."""


def finite_scales(blocks: Tensor, format: str) -> bool:
    """Whether no float16 in any block is NaN or infinite."""
    return not any(
        bool((blocks[:, at : at + 2].view(torch.int16) & 0x7C00).eq(0x7C00).any())
        for at in BLOCKS[format].halves
    )
