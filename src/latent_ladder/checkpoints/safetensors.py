"""Reader of safetensors headers, with all checks; reads no tensors.

Format: https://github.com/huggingface/safetensors#format. The first eight bytes are the length of
the JSON header; the tensors follow without gaps, up to the end of the file.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from latent_ladder.checkpoints.mmap_file import MappedFile, damaged_error, shorten, truncated_error
from latent_ladder.checkpoints.tensor_info import (
    DTYPES,
    Header,
    TensorInfo,
    TensorLocation,
    sort_by_offset,
)
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout

MAX_HEADER_BYTES = 100_000_000
"""Limit of the JSON header in the safetensors format."""

MAX_DIMENSIONS = 64
"""Limit of torch."""


def read_safetensors_header(file: MappedFile) -> Header:
    """Read shapes, dtypes and locations of all tensors, and the metadata.

    Raises :class:`UnknownLayout` (not a safetensors file, or an unknown dtype) or
    :class:`CorruptCheckpoint` (damaged or truncated).
    """
    text = _header_text(file)
    entries = _parse(file, text)
    metadata = _parse_metadata(file, entries.pop("__metadata__", None))
    start = 8 + len(text)
    tensors, locations = {}, {}
    known: dict[tuple[str, str], TensorInfo] = {}  # a checkpoint has few shapes and many tensors
    for name, entry in entries.items():
        info, begin, end = _parse_entry(file, name, entry, known)
        tensors[name], locations[name] = info, TensorLocation(0, start + begin, start + end)
    _check_extent(file, locations, start)
    return Header("safetensors", start, metadata, tensors, locations)


def _header_text(file: MappedFile) -> bytes:
    prefix = file.head(9)
    if len(prefix) < 8:
        raise damaged_error(file.path, f"it has {file.size} bytes")
    (length,) = struct.unpack("<Q", prefix[:8])
    if length > MAX_HEADER_BYTES or length < 2:
        if prefix[8:] == b"{":
            what = f"its header states {length:,} bytes, expected at most {MAX_HEADER_BYTES:,}"
            raise damaged_error(file.path, what)
        raise UnknownLayout(
            f"{file.path.name}: not a safetensors file (header of {length} bytes)",
            "use a .safetensors or .gguf file",
        )
    if length > file.size - 8:
        raise damaged_error(
            file.path, f"its header states {length} bytes, only {file.size - 8} follow"
        )
    text = file.head(8 + length)[8:]
    if len(text) < length:
        raise damaged_error(file.path, "it became shorter while it was read")
    return text


def _parse(file: MappedFile, text: bytes) -> dict[str, Any]:
    """The parsed header. Raises for duplicate names in it, in an entry or in the metadata."""
    unique = partial(_reject_duplicates, file)
    try:
        entries = json.loads(text)
        if not isinstance(entries, dict) or not _has_unique_entries(text, entries):
            entries = json.loads(text, object_pairs_hook=unique)
        elif _METADATA in text:
            after = text[text.index(b":", text.index(_METADATA)) + 1 :]
            body = after.decode(errors="surrogatepass").lstrip()
            json.JSONDecoder(object_pairs_hook=unique).raw_decode(body)
    except (ValueError, RecursionError) as error:
        raise damaged_error(file.path, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise damaged_error(file.path, "its header is not a JSON object")
    return entries


_METADATA, _FIELDS = b'"__metadata__"', (b'"dtype"', b'"shape"', b'"data_offsets"')


def _has_unique_entries(text: bytes, entries: Mapping[str, Any]) -> bool:
    """True if no tensor and no field of a tensor is duplicated; ``False`` if that is not certain.

    Compares the number of fields in the text with the number of parsed entries; a check of every
    pair takes three times as long. A quote inside a name has a backslash before it, so a name
    cannot look like a field.
    """
    has_metadata = "__metadata__" in entries
    written = [text.count(field) for field in _FIELDS]
    expected = len(entries) - has_metadata
    return written == [expected] * len(_FIELDS) and text.count(_METADATA) == has_metadata


def _reject_duplicates(file: MappedFile, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise damaged_error(
            file.path, f"its header contains {shorten(names.most_common(1)[0][0])} twice"
        )
    return table


def _parse_metadata(file: MappedFile, found: Any) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise damaged_error(file.path, "the metadata in its header is not an object of strings")
    return found


def _parse_entry(
    file: MappedFile, name: str, entry: Any, known: dict[tuple[str, str], TensorInfo]
) -> tuple[TensorInfo, int, int]:
    """Parse and check one entry: its shape and type, its begin and end offset.

    ``known`` caches shapes and types that were checked before.
    """
    try:
        shape, dtype, (begin, end) = entry["shape"], entry["dtype"], entry["data_offsets"]
        written = dtype, str(shape)
        info = known.get(written)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged_error(
            file.path, f"the entry of tensor {shorten(name)} is malformed"
        ) from error
    if type(begin) is not int or type(end) is not int:
        raise damaged_error(file.path, f"the entry of tensor {shorten(name)} is malformed")
    if info is None:
        info = known[written] = _parse_info(file, name, shape, dtype)
    if begin < 0 or end - begin != info.nbytes:
        raise _offset_error(file, name, info, begin, end)
    return info, begin, end


def _offset_error(
    file: MappedFile, name: str, info: TensorInfo, begin: int, end: int
) -> CorruptCheckpoint:
    if min(begin, end) < 0:
        what = f"tensor {shorten(name)} has a negative size or offset: {shorten((begin, end))}"
    else:
        size = shorten(info.nbytes)
        what = f"tensor {shorten(name)} has {end - begin} bytes, expected {size}"
    return damaged_error(file.path, what)


def _parse_info(file: MappedFile, name: str, shape: Any, dtype: Any) -> TensorInfo:
    """Check a shape and type. Raises :class:`UnknownLayout` for an unknown dtype."""
    valid = isinstance(shape, list) and isinstance(dtype, str)
    if not valid or not _are_valid_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise damaged_error(file.path, f"the entry of tensor {shorten(name)} is malformed")
    if shape and min(shape) < 0:
        what = f"tensor {shorten(name)} has a negative size or offset: {shorten(tuple(shape))}"
        raise damaged_error(file.path, what)
    if dtype not in DTYPES:
        raise UnknownLayout(
            f"{file.path.name}: tensor {shorten(name)} has dtype {shorten(dtype)}, expected one of "
            f"{', '.join(DTYPES)}",
            "a newer version of latent-ladder may read it",
        )
    info = TensorInfo(tuple(shape), dtype)
    if info.elements % DTYPES[dtype][0]:
        raise damaged_error(file.path, f"tensor {shorten(name)} cannot be {dtype} {shorten(shape)}")
    return info


def _are_valid_sizes(numbers: Iterable[Any]) -> bool:
    """True if all are integers below 2**63."""
    return all(type(n) is int and abs(n) < 1 << 63 for n in numbers)


def _check_extent(file: MappedFile, locations: Mapping[str, TensorLocation], start: int) -> None:
    """Raise unless the tensors fill the file from ``start`` to its end without gap or overlap."""
    at = start
    for name, location in sort_by_offset(locations):
        if location.begin != at:
            problem = "overlaps the one before it" if location.begin < at else "follows a gap"
            _check_length(file, max(p.end for p in locations.values()))
            what = f"tensor {shorten(name)} {problem} ({abs(location.begin - at):,} bytes)"
            raise damaged_error(file.path, what)
        at = location.end
    _check_length(file, at)
    if at < file.size:
        raise damaged_error(file.path, f"{file.size - at:,} bytes follow the last tensor")


def _check_length(file: MappedFile, needed: int) -> None:
    if needed > file.size:
        raise truncated_error(file.path, needed - file.size)
