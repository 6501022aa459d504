"""Stored weight formats back to numbers, on any device and to any float dtype.

Float formats (fp8, nvfp4, mxfp8, int8) here, GGML's blocks in :mod:`dequantize_ggml`. Everything
is computed in float32 and rounded once, in chunks of rows, so that a big matrix needs no more
than its result and some MiB. Knows no file and no layer.

Layouts: OCP Microscaling (mxfp8), cuBLAS's block scaling factors (the swizzle), the conventions
of ComfyUI's quantised checkpoints; checked against comfy-kitchen's decoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latent_ladder.errors import CorruptCheckpoint
from latent_ladder.models.weights.dequantize_ggml import BLOCKS, finite_scales

Parts = Mapping[str, Tensor]
Options = Mapping[str, Any]
Decode = Callable[[Parts, Tensor], None]
"""Some rows of the parts, and float32 (rows, columns) to fill."""

CHUNK_WEIGHTS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Weights decoded at once: a CPU's cache, or enough to keep a GPU busy."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP8_TYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
CONVROT_GROUP = 256
CONVROT_GROUPS = tuple(4**k for k in range(1, 8))


class Tiling(NamedTuple):
    """A format with block scales: weights to a scale, to a packed element, padding of the shape."""

    block: int
    packed: int
    pad: int


TILINGS: Mapping[str, Tiling] = {"nvfp4": Tiling(16, 2, 16), "mxfp8": Tiling(32, 1, 32)}

FORMATS = (*FP8_TYPES, *TILINGS, "int8", *BLOCKS)
"""Every format that :func:`dequantize` knows."""


def dequantize(
    format: str, parts: Parts, options: Options, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """The numbers, ``shape`` in ``dtype``, on the device of the parts; padding is cut off.

    ``parts`` must have passed :func:`check`.
    """
    weight = parts["weight"]
    out = torch.empty(shape, dtype=dtype, device=weight.device)
    if format in BLOCKS:
        block = BLOCKS[format]
        blocks = {"weight": weight.reshape(-1, block.bytes)}
        _fill(_of_blocks(block.decode), blocks, block.weights, out.view(-1, block.weights))
    else:
        rows = {"weight": weight, **_scales(format, parts, options)}
        width = weight.shape[1] * (TILINGS[format].packed if format in TILINGS else 1)
        _fill(_decoder(format, options), rows, width, out)
    return out


def _of_blocks(decode: Callable[[Tensor, Tensor], None]) -> Decode:
    return lambda parts, out: decode(parts["weight"], out)


def _fill(decode: Decode, rows: Parts, width: int, out: Tensor) -> None:
    """Decode ``rows`` into ``out`` chunk by chunk; ``out`` may be smaller (padding)."""
    step = max(1, CHUNK_WEIGHTS.get(out.device.type, CHUNK_WEIGHTS["cuda"]) // width)
    direct = out.dtype == torch.float32 and out.shape[1] == width
    scratch = None if direct else out.new_empty((min(step, len(out)), width), dtype=torch.float32)
    for start in range(0, len(out), step):
        to = out[start : start + step]
        here = to if scratch is None else scratch[: len(to)]
        stop = start + len(to)
        decode({k: t if t.dim() == 0 else t[start:stop] for k, t in rows.items()}, here)
        if scratch is not None:
            to.copy_(here[:, : out.shape[1]])


# --- scales ---------------------------------------------------------------------------------------


def _scales(format: str, parts: Parts, options: Options) -> dict[str, Tensor]:
    """The scales with one row per row of the weight, or of dimension 0 if one serves all."""
    scale = parts.get("weight_scale")
    if scale is None:
        return {}
    rows, columns = parts["weight"].shape
    if format in TILINGS:
        tiling = TILINGS[format]
        blocks = columns * tiling.packed // tiling.block
        if options.get("swizzled", True):
            scale = unswizzled(scale, rows, blocks)
        extra = parts.get("weight_scale_2")
        return {"scale": scale} | ({} if extra is None else {"scale_2": extra.float().reshape(())})
    scale = scale.float()
    return {"scale": scale.reshape(()) if scale.numel() == 1 else scale.reshape(rows, -1)}


def unswizzled(scale: Tensor, rows: int, columns: int) -> Tensor:
    """Block scales, uint8 (rows, columns), out of cuBLAS's tiles of 128 x 4.

    A tile lies as 32 x 4 x 4: row r of it is at (r % 32, r // 32). Padding is cut off.
    """
    tiles = scale.contiguous().view(torch.uint8).view(-1, _up(columns, 4) // 4, 32, 4, 4)
    # The four columns of a tile stay together: moved as one word they cost a quarter.
    words = tiles.view(torch.int32).permute(0, 3, 2, 1, 4)
    plain = words.reshape(_up(rows, 128), -1).view(torch.uint8)
    return plain[:rows, :columns]


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


# --- float formats --------------------------------------------------------------------------------


def _decoder(format: str, options: Options) -> Decode:
    if format == "int8" and options.get("convrot"):
        group = int(options.get("convrot_groupsize", CONVROT_GROUP))
        return lambda parts, out: _rotated_int8(parts, out, group)
    return _DECODERS[format]


def _fp8(type_: torch.dtype) -> Decode:
    def decode(parts: Parts, out: Tensor) -> None:
        scale = parts.get("scale")
        _float8(
            parts["weight"], type_, out, scale if scale is not None and not scale.dim() else None
        )
        if scale is not None and scale.dim():
            _by_groups(out, out, scale)

    return decode


def _nvfp4(parts: Parts, out: Tensor) -> None:
    packed = parts["weight"].reshape(-1).view(torch.uint8).int()
    # A pair of float32 moves as one int64: half the look-ups, and no arithmetic.
    pairs = out.view(torch.int64).view(-1)
    torch.index_select(_pair_table(out.device), 0, packed, out=pairs)
    scale = torch.empty(parts["scale"].shape, device=out.device)
    _float8(parts["scale"], torch.float8_e4m3fn, scale, parts["scale_2"])
    _by_groups(out, out, scale)


def _mxfp8(parts: Parts, out: Tensor) -> None:
    _float8(parts["weight"], torch.float8_e4m3fn, out, None)
    _by_groups(out, out, _exponent_table(out.device)[parts["scale"].int()])


def _int8(parts: Parts, out: Tensor) -> None:
    scale = parts["scale"]
    _by_groups(parts["weight"], out, scale if scale.dim() else scale.expand(len(out), 1))


def _rotated_int8(parts: Parts, out: Tensor, group: int) -> None:
    _int8(parts, out)
    flat = out.view(-1, group)
    torch.mm(flat.clone(), hadamard(group, out.device), out=flat)


_DECODERS: Mapping[str, Decode] = {
    **{name: _fp8(type_) for name, type_ in FP8_TYPES.items()},
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
    "int8": _int8,
}


def _by_groups(q: Tensor, out: Tensor, scale: Tensor) -> None:
    """``out = q * scale``, each of the (rows, groups) scales for its equal share of a row."""
    shape = (*scale.shape, -1)
    torch.mul(q.view(shape), scale[..., None], out=out.view(shape))


def _float8(q: Tensor, type_: torch.dtype, out: Tensor, scale: Tensor | None) -> None:
    """``out = q * scale``, float32; ``q`` is any one-byte dtype, ``scale`` of dimension 0."""
    if out.device.type != "cpu":
        out.copy_(q.view(type_))
        if scale is not None:
            out.mul_(scale)
        return
    # torch converts fp8 element by element on a CPU; looking up is eight times as fast.
    table = _float8_table(type_)
    if scale is not None:
        table = table * scale
    index = q.contiguous().view(torch.uint8).flatten().int()
    torch.index_select(table, 0, index, out=out.view(-1))


@cache
def _float8_table(type_: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(type_).float()


@cache
def _exponent_table(device: torch.device) -> Tensor:
    """2^(e - 127) for every byte e; 255 is NaN."""
    powers = [math.ldexp(1.0, e - 127) for e in range(255)]
    return torch.tensor([*powers, math.nan], dtype=torch.float32, device=device)


@cache
def _pair_table(device: torch.device) -> Tensor:
    """For every byte its two e2m1 numbers, the high nibble's first, as one int64."""
    numbers = torch.tensor([*E2M1, *(-x for x in E2M1)], device=device)
    code = torch.arange(256, device=device)
    return numbers[torch.stack((code >> 4, code & 15), 1)].view(torch.int64).view(-1)


@cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """The regular Hadamard matrix of a power of 4, orthonormal and symmetric: its own inverse."""
    four = torch.ones(4, 4, device=device) - 2 * torch.eye(4, device=device).flip(1)
    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    return matrix / math.sqrt(size)


# --- checks ---------------------------------------------------------------------------------------


def check(format: str, parts: Parts, options: Options, shape: tuple[int, ...], name: str) -> None:
    """Raise :class:`CorruptCheckpoint` unless the parts' shapes fit each other and ``shape``.

    ``shape`` is that of the stored form, padding included.
    """
    weight = parts["weight"]
    if format in BLOCKS:
        block = BLOCKS[format]
        blocks, rest = divmod(math.prod(shape), block.weights)
        fine = not rest and weight.numel() == blocks * block.bytes
    else:
        packed = TILINGS[format].packed if format in TILINGS else 1
        fine = weight.dim() == 2 and shape == (weight.shape[0], weight.shape[1] * packed)
    if not fine:
        raise _corrupt(name, f"{list(weight.shape)} stored as {format} for {list(shape)}")
    problem = "" if format in BLOCKS else _scale_problem(format, parts, options, shape)
    if problem:
        raise _corrupt(name, problem)


def _scale_problem(format: str, parts: Parts, options: Options, shape: tuple[int, ...]) -> str:
    """What is wrong with the number of scales, or nothing."""
    scale, (rows, columns) = parts.get("weight_scale"), shape
    if scale is None:
        return "" if format in FP8_TYPES else "no weight_scale"
    if format == "nvfp4" and "weight_scale_2" not in parts:
        return "no weight_scale_2"
    group = options.get("convrot_groupsize", CONVROT_GROUP)
    if options.get("convrot") and (group not in CONVROT_GROUPS or columns % group):
        return f"rotated by groups of {group} in {columns} columns"
    if not rows or not columns:
        return "no weights"
    if format in TILINGS:
        blocks = columns // TILINGS[format].block
        swizzled = options.get("swizzled", True)
        fine = scale.numel() == (_up(rows, 128) * _up(blocks, 4) if swizzled else rows * blocks)
    else:
        groups, rest = divmod(scale.numel(), rows)
        fine = scale.numel() == 1 or (scale.shape[0] == rows and not (rest or columns % groups))
    return "" if fine else f"scales of shape {list(scale.shape)} for {list(shape)}"


def check_scales(format: str, parts: Parts, name: str) -> None:
    """Raise :class:`CorruptCheckpoint` if a scale is NaN or infinite. GGML: reads all blocks."""
    if format in BLOCKS:
        fine = finite_scales(parts["weight"].reshape(-1, BLOCKS[format].bytes), format)
    else:
        fine = all(_finite(t, format) for part, t in parts.items() if part != "weight")
    if not fine:
        raise _corrupt(name, "a scale that is NaN or infinite")


def _finite(scale: Tensor, format: str) -> bool:
    if scale.element_size() > 1:
        return bool(scale.float().isfinite().all())
    codes = scale.contiguous().view(torch.uint8)
    # e8m0 has one NaN, e4m3fn two (by sign); neither has infinities.
    return not bool((codes == 255).any() if format == "mxfp8" else ((codes & 127) == 127).any())


def _corrupt(name: str, what: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{name}: damaged, {what}",
        "download the file again, or take another conversion of it",
    )
