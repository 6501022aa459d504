"""Attention of each position of a video to a window around it (3-D neighbourhood attention).

A query attends to exactly ``kernel`` positions per axis: the window is shifted inward at borders,
and is the whole axis where that is shorter. Queries are computed in tiles; all queries of a tile
share the union of their windows as keys, and a mask selects those of each, so that the result does
not depend on the tiles. Sources: Hassani et al. 2023, arXiv 2204.07143; LTX-2 ``fallback_na``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_ladder.models.diffusion_decoder_config import (
    ATTENTION_VALUES,
    ATTENTION_VALUES_ELSEWHERE,
    QUERY_TILE,
    Size,
    window_start,
)

ROPE_THETA = 10_000.0


class Box(NamedTuple):
    """Part of a grid: the first position and the size along each axis."""

    first: Size
    size: Size


class _AxisTiles(NamedTuple):
    """Tiles of one axis: positions of queries (n, q) and keys (n, k) in their boxes, and which key
    is in the window of which query (n, q, k)."""

    queries: Tensor
    keys: Tensor
    inside: Tensor


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel: Size, grid: Size, boxes: tuple[Box, Box], scale: float
) -> Tensor:
    """Attention of queries ``q`` (T, H, W, heads, d) to the windows around them.

    ``boxes`` are the parts of ``grid`` that ``q``, and ``k`` and ``v`` (T', H', W', heads, d),
    cover; all windows of the queries must be inside of the second one.
    """
    axes = [
        _axis_tiles(grid[i], kernel[i], (boxes[0].first[i], boxes[0].size[i]),
                    (boxes[1].first[i], boxes[1].size[i]), QUERY_TILE[i])
        for i in range(3)
    ]  # fmt: skip
    # Decisions are made on the CPU copies: reading a value of a GPU would wait for it.
    time, rows, cols = axes
    inside = [axis.inside.to(q.device) for axis in axes]
    col_queries, col_keys = cols.queries.to(q.device), cols.keys.to(q.device)
    out = torch.empty_like(q)
    step = _tiles_together(axes, q)
    for t in range(len(time.queries)):
        for r in range(len(rows.queries)):
            frame_row = (inside[0][t][:, None, :, None] & inside[1][r][:, None]).flatten(2)
            is_full = bool(time.inside[t].all()) and bool(rows.inside[r].all())
            q_part = _rows_of(q, time.queries[t], rows.queries[r])
            k_part, v_part = (_rows_of(x, time.keys[t], rows.keys[r]) for x in (k, v))
            target = _rows_of(out, time.queries[t], rows.queries[r])
            for first in range(0, len(cols.queries), step):
                some = slice(first, first + step)
                part = cols.inside[some]
                count = 1 if bool((part == part[:1]).all()) else len(part)
                mask = None
                if not (is_full and bool(part.all())):
                    mask = _mask(frame_row.flatten(0, 1), inside[2][some][:count])
                result = F.scaled_dot_product_attention(
                    _tiles(q_part, col_queries[some]),
                    _tiles(k_part, col_keys[some]),
                    _tiles(v_part, col_keys[some]),
                    mask,
                    scale=scale,
                )
                _put(target, result, col_queries[some])
    return out


def _tiles_together(axes: Sequence[_AxisTiles], q: Tensor) -> int:
    """Number of tiles along a row of tiles that are computed together."""
    heads, width = q.shape[3:]
    queries, keys = (math.prod(axis[i].shape[1] for axis in axes) for i in range(2))
    per_tile = heads * width * (2 * queries + 2 * keys) + 2 * queries * keys
    budget = ATTENTION_VALUES.get(q.device.type, ATTENTION_VALUES_ELSEWHERE)
    return max(budget // per_tile, 1)


@lru_cache(maxsize=512)
def _axis_tiles(
    length: int, kernel: int, queries: tuple[int, int], keys: tuple[int, int], size: int
) -> _AxisTiles:
    """Tiles of the ``queries`` (first, count) of an axis with their ``keys`` (first, count).

    All tiles have the same size; the last one is moved inward and computes some queries again. The
    same tiles come again for every block and chunk.
    """
    (q_first, q_count), (k_first, k_count) = queries, keys
    size = min(size, q_count)
    span = min(size + kernel - 1, k_count)
    starts = [min(i, q_count - size) for i in range(0, q_count, size)]
    positions = torch.tensor(starts)[:, None] + torch.arange(size)
    windows = torch.tensor(
        [[window_start(q_first + int(p), length, kernel) for p in row] for row in positions]
    )
    key_starts = (windows[:, :1] - k_first).clamp(0, k_count - span)
    key_positions = key_starts + torch.arange(span)
    absolute = (key_positions + k_first)[:, None]
    inside = (absolute >= windows[..., None]) & (
        absolute < windows[..., None] + min(kernel, length)
    )
    return _AxisTiles(positions, key_positions, inside)


def _rows_of(x: Tensor, frames: Tensor, rows: Tensor) -> Tensor:
    """View of consecutive ``frames`` and ``rows`` of ``x``."""
    first, last = int(frames[0]), int(frames[-1])
    return x[first : last + 1, int(rows[0]) : int(rows[-1]) + 1]


def _tiles(x: Tensor, columns: Tensor) -> Tensor:
    """(t, r, W, heads, d) -> (n, heads, t * r * c, d) for the tiles' columns (n, c)."""
    t, r, _, heads, width = x.shape
    n, c = columns.shape
    picked = x[:, :, columns.flatten()].view(t, r, n, c, heads, width)
    return picked.permute(2, 4, 0, 1, 3, 5).reshape(n, heads, t * r * c, width)


def _put(target: Tensor, result: Tensor, columns: Tensor) -> None:
    t, r, _, heads, width = target.shape
    n, c = columns.shape
    back = result.view(n, heads, t, r, c, width).permute(2, 3, 0, 4, 1, 5)
    target[:, :, columns.flatten()] = back.reshape(t, r, n * c, heads, width)


def _mask(frame_row: Tensor, inside: Tensor) -> Tensor:
    """Mask (n, 1, queries, keys) of tiles.

    ``frame_row`` (t * r, kt * kr) is that of frames and rows, ``inside`` (n, c, kc) of columns.
    """
    mask = frame_row[None, :, None, :, None] & inside[:, None, :, None]
    return mask.flatten(1, 2).flatten(2)[:, None]


# --- rotary positions ----------------------------------------------------------------------------


def rope_split(head_dim: int) -> Size:
    """Channels of a head that rotate with time, rows and columns, e.g. 64 -> (16, 24, 24)."""
    side = 2 * -(-3 * head_dim // 16)
    return head_dim - 2 * side, side, side


def apply_rope(x: Tensor, first: Size) -> Tensor:
    """Rotate pairs of neighbouring channels of ``x`` (T, H, W, heads, d) by their positions.

    ``first`` is the position of its first frame, row and column. Angles are float32.
    """
    parts = []
    for axis, part in enumerate(x.float().split(rope_split(x.shape[-1]), dim=-1)):
        width = part.shape[-1]
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=x.device) / width
        positions = torch.arange(x.shape[axis], dtype=torch.float32, device=x.device) + first[axis]
        angles = positions[:, None] / ROPE_THETA**exponents
        shape = [1, 1, 1, 1, width // 2]
        shape[axis] = len(positions)
        cos, sin = angles.cos().view(shape), angles.sin().view(shape)
        a, b = part[..., ::2], part[..., 1::2]
        parts.append(torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2))
    return torch.cat(parts, -1).to(x.dtype)
