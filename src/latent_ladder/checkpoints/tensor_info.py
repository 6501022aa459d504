"""Shapes, stored types and locations of tensors in a file, common to all containers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

DTYPES: Mapping[str, tuple[int, int]] = {
    "BOOL": (1, 1), "U8": (1, 1), "I8": (1, 1),
    "F8_E4M3": (1, 1), "F8_E5M2": (1, 1), "F8_E8M0": (1, 1),
    "F8_E4M3FNUZ": (1, 1), "F8_E5M2FNUZ": (1, 1),
    "F4": (2, 1), "F6_E2M3": (4, 3), "F6_E3M2": (4, 3),
    "U16": (1, 2), "I16": (1, 2), "F16": (1, 2), "BF16": (1, 2),
    "U32": (1, 4), "I32": (1, 4), "F32": (1, 4),
    "U64": (1, 8), "I64": (1, 8), "F64": (1, 8), "C64": (1, 8),
}  # fmt: skip
"""Types of safetensors files -> elements and bytes of the smallest group of elements."""

GGML_BLOCKS: Mapping[str, tuple[int, int]] = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24),
    "Q8_0": (32, 34), "Q8_1": (32, 40), "Q8_K": (256, 292), "Q1_0": (128, 18),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
    "MXFP4": (32, 17), "NVFP4": (64, 36),
}  # fmt: skip
"""Quantised types of GGUF files -> elements and bytes of a block."""

BLOCKS: Mapping[str, tuple[int, int]] = {**DTYPES, **GGML_BLOCKS}
"""All stored types. Plain types of GGUF files have their safetensors names."""


class TensorInfo(NamedTuple):
    """Shape in torch's order and stored type of one tensor.

    ``dtype`` is a safetensors name (``BF16``, ``F8_E4M3``, ...) or a block type of GGML
    (``Q8_0``, ``Q4_K``, ...); a GGML type without a name here is ``GGML_<number>``.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes; 0 for an unknown block type."""
        return _nbytes(self)


@lru_cache(maxsize=4096)  # a checkpoint has few shapes and many tensors
def _nbytes(info: TensorInfo) -> int:
    elements, size = BLOCKS.get(info.dtype, (1, 0))
    return info.elements * size // elements


class TensorLocation(NamedTuple):
    """The location of a tensor: bytes ``begin`` to ``end`` (exclusive) of file number ``part``.

    ``rows`` is the shape in which a block type is read: (rows, bytes per row).
    """

    part: int
    begin: int
    end: int
    rows: tuple[int, int] | None = None


def sort_by_offset(locations: Mapping[str, TensorLocation]) -> list[tuple[str, TensorLocation]]:
    """Names and locations in the order of their offsets."""
    return sorted(locations.items(), key=lambda named: (named[1].begin, named[1].end))


@dataclass(frozen=True)
class Header:
    """The header of one file; the tensors begin after its ``length`` bytes."""

    container: str
    length: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    locations: Mapping[str, TensorLocation]
    kv: Mapping[str, Any] = field(default_factory=dict)
