"""Reader of GGUF headers: metadata, and the location of each tensor.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
Values are parsed on access only: the 262,144 tokens of Gemma are skipped when the file is opened,
and become a list when they are read from :class:`KeyValues`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import NamedTuple

from latent_ladder.checkpoints.gguf_metadata import HeaderReader, KeyValues, ValueLocation
from latent_ladder.checkpoints.mmap_file import MappedFile, damaged_error, shorten, truncated_error
from latent_ladder.checkpoints.tensor_info import (
    BLOCKS,
    GGML_BLOCKS,
    Header,
    TensorInfo,
    TensorLocation,
    sort_by_offset,
)
from latent_ladder.errors import UnknownLayout

MAX_DIMENSIONS, MAX_TENSOR_BYTES = 8, 1 << 60
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20
SHAPE_PREFIX = "comfy.gguf.orig_shape."
"""Prefix of the metadata key with a tensor's original shape, if it has more than 4 dimensions."""

GGML_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Tensor type number -> name."""


def read_gguf_header(file: MappedFile) -> Header:
    """Read metadata, shapes, types and locations of all tensors.

    Shapes are in torch's order; ``comfy.gguf.orig_shape.<tensor>`` replaces the stored one. Raises
    :class:`UnknownLayout` for an unknown version or byte order, :class:`CorruptCheckpoint` for a
    damaged or truncated file.
    """
    reader = HeaderReader(file, 4)
    _check_version(file, reader.number("I"))
    tensor_count, value_count = reader.number("Q"), reader.number("Q")
    for what, count, min_bytes in (("tensors", tensor_count, 24), ("values", value_count, 13)):
        if count * min_bytes > reader.end:
            raise damaged_error(file.path, f"its header claims {count:,} {what}")
    kv = KeyValues(file, _read_values(reader, value_count))
    entries = _read_entries(reader, tensor_count)
    alignment = _read_alignment(file, kv)
    start = -(-reader.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    locations: dict[str, TensorLocation] = {}
    for name, entry in entries.items():
        stored, locations[name] = _tensor_layout(file, name, entry, start)
        if entry.offset % alignment:
            raise damaged_error(
                file.path, f"tensor {shorten(name)} is not aligned to {alignment} bytes"
            )
        tensors[name] = _original_shape(file, kv, name, stored)
    _check_overlap(file, locations)
    return Header("gguf", start if entries else reader.position, kv.texts(), tensors, locations, kv)


class _Entry(NamedTuple):
    """A tensor in the header: dimensions with the innermost first, offset from the first tensor."""

    dimensions: tuple[int, ...]
    type: int
    offset: int


def _check_version(file: MappedFile, version: int) -> None:
    if version in (2, 3):
        return
    if version & 0xFFFF == 0:
        raise UnknownLayout(
            f"{file.path.name}: a big-endian GGUF file, expected little-endian",
            "use the little-endian file of the same model, or convert it with "
            "gguf-py's gguf_convert_endian",
        )
    raise UnknownLayout(
        f"{file.path.name}: GGUF version {version}, expected 2 or 3",
        "use a current file of the same model"
        if version < 2
        else "a newer version of latent-ladder may read it",
    )


def _read_values(reader: HeaderReader, count: int) -> dict[str, ValueLocation]:
    values: dict[str, ValueLocation] = {}
    for _ in range(count):
        key = _read_name(reader)
        kind = reader.number("I")
        if key in values:
            raise damaged_error(reader.file.path, f"its header contains {shorten(key)} twice")
        values[key] = ValueLocation(kind, reader.position)
        reader.skip(kind)
    return values


def _read_entries(reader: HeaderReader, count: int) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        name, rank = _read_name(reader), reader.number("I")
        if name in entries:
            raise damaged_error(reader.file.path, f"its header contains {shorten(name)} twice")
        if rank > MAX_DIMENSIONS:
            raise damaged_error(reader.file.path, f"tensor {shorten(name)} has {rank} dimensions")
        form = _ENTRY_STRUCTS[rank]
        *dimensions, kind, offset = form.unpack_from(reader.buffer, reader.advance(form.size))
        entries[name] = _Entry(tuple(dimensions), kind, offset)
    return entries


_ENTRY_STRUCTS = [struct.Struct(f"<{rank}QIQ") for rank in range(MAX_DIMENSIONS + 1)]
"""Layout of an entry after the tensor's name and rank, by rank: dimensions, type, offset."""


def _read_name(reader: HeaderReader) -> str:
    name = reader.text()
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        what = f"a name in its header is not UTF-8: {shorten(ascii(name))}"
        raise damaged_error(reader.file.path, what) from error


def _read_alignment(file: MappedFile, kv: KeyValues) -> int:
    alignment = kv.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment % 8:
        raise damaged_error(file.path, f"its alignment is {shorten(alignment)}")
    return alignment


def _tensor_layout(
    file: MappedFile, name: str, entry: _Entry, start: int
) -> tuple[TensorInfo, TensorLocation]:
    """The stored shape, type and location of a tensor. Raises if it is not inside the file."""
    info = TensorInfo(entry.dimensions[::-1], GGML_TYPES.get(entry.type, f"GGML_{entry.type}"))
    begin, size = start + entry.offset, info.nbytes
    elements, block_bytes = BLOCKS.get(info.dtype, (1, 0))
    width = info.shape[-1] if info.shape else 1
    is_empty_block = not info.elements and info.dtype in GGML_BLOCKS
    if is_empty_block or width % elements or size > MAX_TENSOR_BYTES:
        raise damaged_error(
            file.path, f"tensor {shorten(name)} cannot be {info.dtype} {info.shape}"
        )
    if size and begin + size > file.size:
        raise truncated_error(file.path, begin + size - file.size)
    row_bytes = width // elements * block_bytes
    rows = (size // row_bytes, row_bytes) if info.dtype in GGML_BLOCKS and size else None
    return info, TensorLocation(0, begin, begin + size, rows)


def _original_shape(file: MappedFile, kv: KeyValues, name: str, stored: TensorInfo) -> TensorInfo:
    """The tensor with its original shape from the metadata, if there is one."""
    shape = kv.get(SHAPE_PREFIX + name)
    if shape is None:
        return stored
    fits = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not fits or math.prod(shape) != stored.elements:
        what = f"tensor {shorten(name)} of shape {stored.shape} cannot be {shorten(shape)}"
        raise damaged_error(file.path, what)
    return TensorInfo(tuple(shape), stored.dtype)


def _check_overlap(file: MappedFile, locations: Mapping[str, TensorLocation]) -> None:
    at = 0
    for name, location in sort_by_offset(locations):
        if location.begin < at:
            raise damaged_error(file.path, f"tensor {shorten(name)} overlaps the one before it")
        at = max(at, location.end)
