"""The header of a GGUF file: metadata, and where each tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
Nothing is parsed that is not asked for: the 262,144 tokens of Gemma are stepped over when the file
is opened and become a list when :class:`KeyValues` is asked for them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import NamedTuple

from latent_ladder.checkpoints.gguf_metadata import KeyValues, Reader, Value
from latent_ladder.checkpoints.mmap_file import MappedFile, cut_off, damaged, shortened
from latent_ladder.checkpoints.tensor_info import (
    BLOCKS,
    GGML_BLOCKS,
    Header,
    Place,
    TensorInfo,
    in_order,
)
from latent_ladder.errors import UnknownLayout

MAX_DIMENSIONS, MAX_TENSOR_BYTES = 8, 1 << 60
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20
SHAPE_PREFIX = "comfy.gguf.orig_shape."
"""Before a tensor's name: the shape it had, for those that GGUF's four dimensions cannot hold."""

GGML_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Tensor type number -> name."""


def read_gguf_header(file: MappedFile) -> Header:
    """Metadata, shapes, types and places of all tensors.

    Shapes are in torch's order; ``comfy.gguf.orig_shape.<tensor>`` goes before the stored one.
    Raises :class:`UnknownLayout` for a version or byte order it does not read,
    :class:`CorruptCheckpoint` for a damaged or cut file.
    """
    reader = Reader(file, 4)
    _check_version(file, reader.number("I"))
    tensor_count, value_count = reader.number("Q"), reader.number("Q")
    for what, count, least in (("tensors", tensor_count, 24), ("values", value_count, 13)):
        if count * least > reader.end:
            raise damaged(file.path, f"its header claims {count:,} {what}")
    kv = KeyValues(file, _values(reader, value_count))
    entries = _entries(reader, tensor_count)
    alignment = _alignment(file, kv)
    start = -(-reader.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    for name, entry in entries.items():
        stored, places[name] = _stored(file, name, entry, start)
        if entry.offset % alignment:
            raise damaged(file.path, f"tensor {shortened(name)} begins off the grid of {alignment}")
        tensors[name] = _original(file, kv, name, stored)
    _check_places(file, places)
    return Header("gguf", start if entries else reader.at, kv.texts(), tensors, places, kv)


class _Entry(NamedTuple):
    """A tensor as the header has it: dimensions innermost first, offset from the first tensor."""

    dimensions: tuple[int, ...]
    type: int
    offset: int


def _check_version(file: MappedFile, version: int) -> None:
    if version in (2, 3):
        return
    if version & 0xFFFF == 0:
        raise UnknownLayout(
            f"{file.path.name}: a big-endian GGUF file; little-endian ones are read",
            "use the little-endian file of the same model, or convert it with "
            "gguf-py's gguf_convert_endian",
        )
    raise UnknownLayout(
        f"{file.path.name}: GGUF version {version}; versions 2 and 3 are read",
        "use a current file of the same model"
        if version < 2
        else "a newer version of latent-ladder may know it",
    )


def _values(reader: Reader, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for _ in range(count):
        key = _name(reader)
        kind = reader.number("I")
        if key in values:
            raise damaged(reader.file.path, f"its header names {shortened(key)} twice")
        values[key] = Value(kind, reader.at)
        reader.skip(kind)
    return values


def _entries(reader: Reader, count: int) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        name, rank = _name(reader), reader.number("I")
        if name in entries:
            raise damaged(reader.file.path, f"its header names {shortened(name)} twice")
        if rank > MAX_DIMENSIONS:
            raise damaged(reader.file.path, f"tensor {shortened(name)} has {rank} dimensions")
        form = _ENTRY_FORMS[rank]
        *dimensions, kind, offset = form.unpack_from(reader.buffer, reader.take(form.size))
        entries[name] = _Entry(tuple(dimensions), kind, offset)
    return entries


_ENTRY_FORMS = [struct.Struct(f"<{rank}QIQ") for rank in range(MAX_DIMENSIONS + 1)]
"""What follows a tensor's name and the number of its dimensions."""


def _name(reader: Reader) -> str:
    name = reader.text()
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        what = f"a name in its header is no text: {shortened(ascii(name))}"
        raise damaged(reader.file.path, what) from error


def _alignment(file: MappedFile, kv: KeyValues) -> int:
    alignment = kv.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment % 8:
        raise damaged(file.path, f"an alignment of {shortened(alignment)}")
    return alignment


def _stored(file: MappedFile, name: str, entry: _Entry, start: int) -> tuple[TensorInfo, Place]:
    """A tensor with its stored shape, and its place, which must be inside the file."""
    info = TensorInfo(entry.dimensions[::-1], GGML_TYPES.get(entry.type, f"GGML_{entry.type}"))
    begin, size = start + entry.offset, info.nbytes
    elements, block_bytes = BLOCKS.get(info.dtype, (1, 0))
    width = info.shape[-1] if info.shape else 1
    if width % elements or size > MAX_TENSOR_BYTES:
        raise damaged(file.path, f"tensor {shortened(name)} cannot be {info.dtype} {info.shape}")
    if size and begin + size > file.size:
        raise cut_off(file.path, begin + size - file.size)
    row_bytes = width // elements * block_bytes
    rows = (size // row_bytes, row_bytes) if info.dtype in GGML_BLOCKS and size else None
    return info, Place(0, begin, begin + size, rows)


def _original(file: MappedFile, kv: KeyValues, name: str, stored: TensorInfo) -> TensorInfo:
    """The tensor with the shape it had before it became a GGUF tensor."""
    shape = kv.get(SHAPE_PREFIX + name)
    if shape is None:
        return stored
    fits = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not fits or math.prod(shape) != stored.elements:
        what = f"tensor {shortened(name)} of shape {stored.shape} cannot be {shortened(shape)}"
        raise damaged(file.path, what)
    return TensorInfo(tuple(shape), stored.dtype)


def _check_places(file: MappedFile, places: Mapping[str, Place]) -> None:
    at = 0
    for name, place in in_order(places):
        if place.begin < at:
            raise damaged(file.path, f"tensor {shortened(name)} overlaps the one before it")
        at = max(at, place.end)
