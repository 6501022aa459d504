"""Dequantisation of stored weights, on any device and to any float dtype.

fp8, nvfp4, mxfp8 and int8 are here, GGML's block types in :mod:`dequantize_ggml`. Computation is
in float32, rounded once, in chunks of rows, so a large matrix needs memory for its result and a
few MiB.

Sources of the layouts: OCP Microscaling (mxfp8), cuBLAS block scaling factors (the swizzle), and
the conventions of ComfyUI's quantised checkpoints; tested against comfy-kitchen's decoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latent_ladder.errors import CorruptCheckpoint
from latent_ladder.models.weights.dequantize_ggml import GGML_BLOCKS, scales_are_finite

Parts = Mapping[str, Tensor]
Options = Mapping[str, Any]
Decode = Callable[[Parts, Tensor], None]
"""Function that decodes some rows of the parts into a float32 tensor (rows, columns)."""

CHUNK_WEIGHTS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Weights per chunk, by device type: what fits a CPU's cache, or keeps a GPU busy."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP8_TYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
CONVROT_GROUP = 256
CONVROT_GROUPS = tuple(4**k for k in range(1, 8))


class BlockScaling(NamedTuple):
    """Sizes of a block-scaled format.

    ``block``: weights per scale. ``packed``: weights per stored element. ``pad``: rows and
    columns are padded to a multiple of this.
    """

    block: int
    packed: int
    pad: int


BLOCK_SCALED_FORMATS: Mapping[str, BlockScaling] = {
    "nvfp4": BlockScaling(16, 2, 16),
    "mxfp8": BlockScaling(32, 1, 32),
}

FORMATS = (*FP8_TYPES, *BLOCK_SCALED_FORMATS, "int8", *GGML_BLOCKS)
"""Names of all formats that :func:`dequantize` supports."""


def dequantize(
    format: str, parts: Parts, options: Options, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Dequantise ``parts`` to a tensor of ``shape`` in ``dtype`` on their device.

    Padding beyond ``shape`` is removed. ``parts`` must have passed :func:`check_parts`.
    """
    weight = parts["weight"]
    out = torch.empty(shape, dtype=dtype, device=weight.device)
    if format in GGML_BLOCKS:
        block = GGML_BLOCKS[format]
        blocks = {"weight": weight.reshape(-1, block.bytes)}
        _fill(_decode_blocks(block.decode), blocks, block.weights, out.view(-1, block.weights))
    else:
        rows = {"weight": weight, **_scales(format, parts, options)}
        width = weight.shape[1] * (
            BLOCK_SCALED_FORMATS[format].packed if format in BLOCK_SCALED_FORMATS else 1
        )
        _fill(_decoder(format, options), rows, width, out)
    return out


def _decode_blocks(decode: Callable[[Tensor, Tensor], None]) -> Decode:
    return lambda parts, out: decode(parts["weight"], out)


def _fill(decode: Decode, rows: Parts, width: int, out: Tensor) -> None:
    """Decode ``rows`` into ``out`` in chunks; ``out`` may be smaller than the padded rows."""
    step = max(1, CHUNK_WEIGHTS.get(out.device.type, CHUNK_WEIGHTS["cuda"]) // width)
    direct = out.dtype == torch.float32 and out.shape[1] == width
    scratch = None if direct else out.new_empty((min(step, len(out)), width), dtype=torch.float32)
    for start in range(0, len(out), step):
        target = out[start : start + step]
        here = target if scratch is None else scratch[: len(target)]
        stop = start + len(target)
        decode({k: t if t.dim() == 0 else t[start:stop] for k, t in rows.items()}, here)
        if scratch is not None:
            target.copy_(here[:, : out.shape[1]])


# --- scales ---------------------------------------------------------------------------------------


def _scales(format: str, parts: Parts, options: Options) -> dict[str, Tensor]:
    """Scales with one row per row of the weight, or with no dimension if there is only one."""
    scale = parts.get("weight_scale")
    if scale is None:
        return {}
    rows, columns = parts["weight"].shape
    if format in BLOCK_SCALED_FORMATS:
        tiling = BLOCK_SCALED_FORMATS[format]
        blocks = columns * tiling.packed // tiling.block
        if options.get("swizzled", True):
            scale = unswizzle(scale, rows, blocks)
        extra = parts.get("weight_scale_2")
        return {"scale": scale} | ({} if extra is None else {"scale_2": extra.float().reshape(())})
    scale = scale.float()
    return {"scale": scale.reshape(()) if scale.numel() == 1 else scale.reshape(rows, -1)}


def unswizzle(scale: Tensor, rows: int, columns: int) -> Tensor:
    """Convert block scales from cuBLAS's tiles of 128 x 4 to plain order, uint8 (rows, columns).

    A tile is stored as 32 x 4 x 4, with row r of it at (r % 32, r // 32). Padding is removed.
    """
    tiles = scale.contiguous().view(torch.uint8).view(-1, _round_up(columns, 4) // 4, 32, 4, 4)
    # The four columns of a tile stay together, so they are moved as one 32-bit word.
    words = tiles.view(torch.int32).permute(0, 3, 2, 1, 4)
    plain = words.reshape(_round_up(rows, 128), -1).view(torch.uint8)
    return plain[:rows, :columns]


def swizzle(scale: Tensor) -> Tensor:
    """Convert block scales (rows, columns) of one byte to cuBLAS's tiles, uint8, flat.

    The inverse of :func:`unswizzle`; tiles are filled up with zeros.
    """
    rows, columns = scale.shape
    tall, wide = _round_up(rows, 128), _round_up(columns, 4)
    plain = scale.new_zeros((tall, wide), dtype=torch.uint8)
    plain[:rows, :columns] = scale.contiguous().view(torch.uint8)
    tiles = plain.view(-1, 4, 32, wide // 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(-1)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


# --- float formats --------------------------------------------------------------------------------


def _decoder(format: str, options: Options) -> Decode:
    if format == "int8" and options.get("convrot"):
        group = int(options.get("convrot_groupsize", CONVROT_GROUP))
        return lambda parts, out: _int8_convrot(parts, out, group)
    return _DECODERS[format]


def _fp8(type_: torch.dtype) -> Decode:
    def decode(parts: Parts, out: Tensor) -> None:
        scale = parts.get("scale")
        _float8(
            parts["weight"], type_, out, scale if scale is not None and not scale.dim() else None
        )
        if scale is not None and scale.dim():
            _scale_groups(out, out, scale)

    return decode


def _nvfp4(parts: Parts, out: Tensor) -> None:
    packed = parts["weight"].reshape(-1).view(torch.uint8).int()
    # A pair of float32 is looked up as one int64: half the look-ups, and no arithmetic.
    pairs = out.view(torch.int64).view(-1)
    torch.index_select(_pair_table(out.device), 0, packed, out=pairs)
    scale = torch.empty(parts["scale"].shape, device=out.device)
    _float8(parts["scale"], torch.float8_e4m3fn, scale, parts["scale_2"])
    _scale_groups(out, out, scale)


def _mxfp8(parts: Parts, out: Tensor) -> None:
    _float8(parts["weight"], torch.float8_e4m3fn, out, None)
    _scale_groups(out, out, _exponent_table(out.device)[parts["scale"].int()])


def _int8(parts: Parts, out: Tensor) -> None:
    scale = parts["scale"]
    _scale_groups(parts["weight"], out, scale if scale.dim() else scale.expand(len(out), 1))


def _int8_convrot(parts: Parts, out: Tensor, group: int) -> None:
    _int8(parts, out)
    flat = out.view(-1, group)
    torch.mm(flat.clone(), hadamard_matrix(group, out.device), out=flat)


_DECODERS: Mapping[str, Decode] = {
    **{name: _fp8(type_) for name, type_ in FP8_TYPES.items()},
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
    "int8": _int8,
}


def _scale_groups(q: Tensor, out: Tensor, scale: Tensor) -> None:
    """Compute ``out = q * scale``; ``scale`` (rows, groups), each for an equal part of a row."""
    shape = (*scale.shape, -1)
    torch.mul(q.view(shape), scale[..., None], out=out.view(shape))


def _float8(q: Tensor, type_: torch.dtype, out: Tensor, scale: Tensor | None) -> None:
    """Compute ``out = q * scale`` in float32; ``q`` has a one-byte dtype, ``scale`` is a scalar."""
    if out.device.type != "cpu":
        out.copy_(q.view(type_))
        if scale is not None:
            out.mul_(scale)
        return
    # On a CPU torch converts fp8 element by element; a lookup table is eight times as fast.
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
    """Table of 2^(e - 127) for each byte e (e8m0); 255 is NaN."""
    powers = [math.ldexp(1.0, e - 127) for e in range(255)]
    return torch.tensor([*powers, math.nan], dtype=torch.float32, device=device)


@cache
def _pair_table(device: torch.device) -> Tensor:
    """Table of the two e2m1 numbers in each byte, high nibble first, as one int64."""
    numbers = torch.tensor([*E2M1, *(-x for x in E2M1)], device=device)
    code = torch.arange(256, device=device)
    return numbers[torch.stack((code >> 4, code & 15), 1)].view(torch.int64).view(-1)


@cache
def hadamard_matrix(size: int, device: torch.device) -> Tensor:
    """Hadamard matrix, ``size`` a power of 4; orthonormal, symmetric, its own inverse."""
    four = torch.ones(4, 4, device=device) - 2 * torch.eye(4, device=device).flip(1)
    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    return matrix / math.sqrt(size)


# --- checks ---------------------------------------------------------------------------------------


def check_parts(
    format: str, parts: Parts, options: Options, shape: tuple[int, ...], name: str
) -> None:
    """Raise :class:`CorruptCheckpoint` unless the parts' shapes match each other and ``shape``.

    ``shape`` is that of the stored form, with padding. ``name`` is the tensor's, for the error.
    """
    weight = parts["weight"]
    if format in GGML_BLOCKS:
        block = GGML_BLOCKS[format]
        blocks, remainder = divmod(math.prod(shape), block.weights)
        valid = not remainder and weight.numel() == blocks * block.bytes
    else:
        packed = BLOCK_SCALED_FORMATS[format].packed if format in BLOCK_SCALED_FORMATS else 1
        valid = weight.dim() == 2 and shape == (weight.shape[0], weight.shape[1] * packed)
    if not valid:
        raise _corrupt(name, f"{list(weight.shape)} stored as {format} for {list(shape)}")
    problem = "" if format in GGML_BLOCKS else _scale_problem(format, parts, options, shape)
    if problem:
        raise _corrupt(name, problem)


def _scale_problem(format: str, parts: Parts, options: Options, shape: tuple[int, ...]) -> str:
    """Describe what is wrong with the scales; empty if nothing is."""
    scale, (rows, columns) = parts.get("weight_scale"), shape
    if scale is None:
        return "" if format in FP8_TYPES else "weight_scale is missing"
    if format == "nvfp4" and "weight_scale_2" not in parts:
        return "weight_scale_2 is missing"
    group = options.get("convrot_groupsize", CONVROT_GROUP)
    if options.get("convrot") and (group not in CONVROT_GROUPS or columns % group):
        return f"rotated by groups of {group} in {columns} columns"
    if not rows or not columns:
        return "it has no weights"
    if format in BLOCK_SCALED_FORMATS:
        blocks = columns // BLOCK_SCALED_FORMATS[format].block
        swizzled = options.get("swizzled", True)
        valid = scale.numel() == (
            _round_up(rows, 128) * _round_up(blocks, 4) if swizzled else rows * blocks
        )
    else:
        groups, remainder = divmod(scale.numel(), rows)
        valid = scale.numel() == 1 or (
            scale.shape[0] == rows and not (remainder or columns % groups)
        )
    return "" if valid else f"scales of shape {list(scale.shape)} for {list(shape)}"


def check_scales(format: str, parts: Parts, name: str) -> None:
    """Raise :class:`CorruptCheckpoint` if a scale is NaN or infinite; reads all GGML blocks."""
    if format in GGML_BLOCKS:
        valid = scales_are_finite(parts["weight"].reshape(-1, GGML_BLOCKS[format].bytes), format)
    else:
        valid = all(_is_finite(t, format) for part, t in parts.items() if part != "weight")
    if not valid:
        raise _corrupt(name, "a scale is NaN or infinite")


def _is_finite(scale: Tensor, format: str) -> bool:
    if scale.element_size() > 1:
        return bool(scale.float().isfinite().all())
    codes = scale.contiguous().view(torch.uint8)
    # e8m0 has one NaN, e4m3fn two (by sign); neither has infinities.
    return not bool((codes == 255).any() if format == "mxfp8" else ((codes & 127) == 127).any())


def _corrupt(name: str, problem: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{name}: damaged, {problem}",
        "download the file again, or use another quantised version of it",
    )
