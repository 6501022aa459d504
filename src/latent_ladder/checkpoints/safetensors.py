"""The header of a safetensors file, read and checked without touching a tensor.

Format: https://github.com/huggingface/safetensors#format. Eight bytes say how long the JSON header
is; the tensors follow it side by side, without a gap, to the end of the file.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from latent_ladder.checkpoints.mmap_file import MappedFile, cut_off, damaged, shortened
from latent_ladder.checkpoints.tensor_info import DTYPES, Header, Place, TensorInfo, in_order
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout

MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit on its JSON header."""

MAX_DIMENSIONS = 64
"""torch's own."""


def read_safetensors_header(file: MappedFile) -> Header:
    """Shapes, dtypes and places of all tensors.

    Raises :class:`UnknownLayout` (not a safetensors file, or an unknown dtype) or
    :class:`CorruptCheckpoint` (damaged, or cut off). Reads no more than the file holds.
    """
    text = _header_text(file)
    entries = _parse(file, text)
    metadata = _metadata(file, entries.pop("__metadata__", None))
    start = 8 + len(text)
    tensors, places = {}, {}
    known: dict[tuple[str, str], TensorInfo] = {}  # a checkpoint has few shapes and many tensors
    for name, entry in entries.items():
        info, begin, end = _tensor(file, name, entry, known)
        tensors[name], places[name] = info, Place(0, start + begin, start + end)
    _check_extent(file, places, start)
    return Header("safetensors", start, metadata, tensors, places)


def _header_text(file: MappedFile) -> bytes:
    prefix = file.head(9)
    if len(prefix) < 8:
        raise damaged(file.path, f"it holds {file.size} bytes")
    (length,) = struct.unpack("<Q", prefix[:8])
    if length > MAX_HEADER_BYTES or length < 2:
        if prefix[8:] == b"{":
            what = f"its header claims {length:,} bytes, at most {MAX_HEADER_BYTES:,} are allowed"
            raise damaged(file.path, what)
        raise UnknownLayout(
            f"{file.path.name}: not a safetensors file (header of {length} bytes)",
            "model files end in .safetensors or .gguf; check where this one came from",
        )
    if length > file.size - 8:
        raise damaged(file.path, f"its header needs {length} bytes and {file.size - 8} are there")
    text = file.head(8 + length)[8:]
    if len(text) < length:
        raise damaged(file.path, "it became shorter while it was read")
    return text


def _parse(file: MappedFile, text: bytes) -> dict[str, Any]:
    """The header's table. Raises for a name that stands twice in it, or in one of its parts."""
    unique = partial(_unique, file)
    try:
        entries = json.loads(text)
        if not isinstance(entries, dict) or not _tensors_once(text, entries):
            entries = json.loads(text, object_pairs_hook=unique)
        elif _METADATA in text:
            after = text[text.index(b":", text.index(_METADATA)) + 1 :]
            body = after.decode(errors="surrogatepass").lstrip()
            json.JSONDecoder(object_pairs_hook=unique).raw_decode(body)
    except (ValueError, RecursionError) as error:
        raise damaged(file.path, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise damaged(file.path, "its header is not a table")
    return entries


_METADATA, _FIELDS = b'"__metadata__"', (b'"dtype"', b'"shape"', b'"data_offsets"')


def _tensors_once(text: bytes, entries: Mapping[str, Any]) -> bool:
    """Whether no tensor and no field of one can stand twice; ``False`` where that is unsure.

    As many were written as came out: a look at every pair takes three times as long. A quote
    inside a name is written with a backslash before it, so it cannot look like a field.
    """
    has_metadata = "__metadata__" in entries
    written = [text.count(field) for field in _FIELDS]
    expected = len(entries) - has_metadata
    return written == [expected] * len(_FIELDS) and text.count(_METADATA) == has_metadata


def _unique(file: MappedFile, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise damaged(file.path, f"its header names {shortened(names.most_common(1)[0][0])} twice")
    return table


def _metadata(file: MappedFile, found: Any) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise damaged(file.path, "the metadata in its header is not a table of texts")
    return found


def _tensor(
    file: MappedFile, name: str, entry: Any, known: dict[tuple[str, str], TensorInfo]
) -> tuple[TensorInfo, int, int]:
    """One entry, checked: its shape and type, and where it begins and ends.

    ``known`` are the shapes and types checked before, by how they were written.
    """
    try:
        shape, dtype, (begin, end) = entry["shape"], entry["dtype"], entry["data_offsets"]
        written = dtype, str(shape)
        info = known.get(written)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(file.path, f"the entry of tensor {shortened(name)} is malformed") from error
    if type(begin) is not int or type(end) is not int:
        raise damaged(file.path, f"the entry of tensor {shortened(name)} is malformed")
    if info is None:
        info = known[written] = _info(file, name, shape, dtype)
    if begin < 0 or end - begin != info.nbytes:
        raise _misplaced(file, name, info, begin, end)
    return info, begin, end


def _misplaced(
    file: MappedFile, name: str, info: TensorInfo, begin: int, end: int
) -> CorruptCheckpoint:
    if min(begin, end) < 0:
        what = f"tensor {shortened(name)} has a negative size or place: {shortened((begin, end))}"
    else:
        size = shortened(info.nbytes)
        what = f"tensor {shortened(name)} occupies {end - begin} bytes, not {size}"
    return damaged(file.path, what)


def _info(file: MappedFile, name: str, shape: Any, dtype: Any) -> TensorInfo:
    """A shape and type, checked."""
    right = isinstance(shape, list) and isinstance(dtype, str)
    if not right or not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise damaged(file.path, f"the entry of tensor {shortened(name)} is malformed")
    if shape and min(shape) < 0:
        what = f"tensor {shortened(name)} has a negative size or place: {shortened(tuple(shape))}"
        raise damaged(file.path, what)
    if dtype not in DTYPES:
        raise UnknownLayout(
            f"{file.path.name}: tensor {shortened(name)} has dtype {shortened(dtype)}, known: "
            f"{', '.join(DTYPES)}",
            "a newer version of latent-ladder may know it",
        )
    info = TensorInfo(tuple(shape), dtype)
    if info.elements % DTYPES[dtype][0]:
        raise damaged(file.path, f"tensor {shortened(name)} cannot be {dtype} {shortened(shape)}")
    return info


def _are_counts(numbers: Iterable[Any]) -> bool:
    """Whether all are integers of a size that a file can mean."""
    return all(type(n) is int and abs(n) < 1 << 63 for n in numbers)


def _check_extent(file: MappedFile, places: Mapping[str, Place], start: int) -> None:
    """Side by side from ``start`` to the end of the file: no overlap, no gap, nothing beyond."""
    at = start
    for name, place in in_order(places):
        if place.begin != at:
            problem = "overlaps the one before it" if place.begin < at else "follows a gap"
            _check_length(file, max(p.end for p in places.values()))
            what = f"tensor {shortened(name)} {problem} ({abs(place.begin - at):,} bytes)"
            raise damaged(file.path, what)
        at = place.end
    _check_length(file, at)
    if at < file.size:
        raise damaged(file.path, f"{file.size - at:,} bytes follow its last tensor")


def _check_length(file: MappedFile, needed: int) -> None:
    if needed > file.size:
        raise cut_off(file.path, needed - file.size)
