"""One model file: its keys, shapes, dtypes and metadata, with lazy reads.

Opening reads the header only, so a 46 GB checkpoint opens in milliseconds. Knows nothing about
what the tensors mean (that is :mod:`latent_ladder.checkpoints.layout`).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_ladder.errors import CheckpointNotFound, CorruptCheckpoint, UnknownLayout

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit on its JSON header."""

ID_SAMPLES, ID_SAMPLE_BYTES = 16, 4096

BITS_PER_ELEMENT = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "F4": 4,
}  # fmt: skip


class TensorInfo(NamedTuple):
    """Shape and stored dtype (safetensors names: ``BF16``, ``F8_E4M3``, ...) of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many elements the shape holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.elements * BITS_PER_ELEMENT[self.dtype] // 8


@dataclass(frozen=True)
class CheckpointFile:
    """The header of one file. ``read`` is lazy and memory-mapped.

    ``id`` names the content for artefact keys: the size and a hash of the header, which lists
    every tensor with its place, and of 16 samples of 4 KiB spread over the data. Hashing 46 GB
    at every start would cost minutes; a fine-tune that keeps every name and shape still differs
    in a sample.
    """

    path: Path
    header_bytes: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Size and sampled content hash, equal for equal files wherever they lie."""
        size = self.path.stat().st_size
        data = size - self.header_bytes
        digest = hashlib.blake2b(digest_size=12)
        with self.path.open("rb") as opened:
            digest.update(opened.read(self.header_bytes))
            for k in range(ID_SAMPLES):
                opened.seek(self.header_bytes + max(0, data - ID_SAMPLE_BYTES) * k // ID_SAMPLES)
                digest.update(opened.read(ID_SAMPLE_BYTES))
        return f"{size:x}-{digest.hexdigest()}"

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """The tensor ``name`` in its stored dtype, memory-mapped on the CPU.

        Raises :class:`CorruptCheckpoint` when the file changed or the name is not in it.
        """
        from safetensors import SafetensorError

        try:
            tensor: Tensor = self._opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpoint(
                f"{self.path.name}: cannot read tensor {name}: {error}",
                "download the file again or check that it did not change while it was in use",
            ) from error
        return tensor

    @cached_property
    def _opened(self) -> Any:
        """The mapped file. Kept open: parsing thousands of names for every tensor is slow."""
        from safetensors import safe_open

        return safe_open(self.path, "pt")


def open_checkpoint(path: Path | str) -> CheckpointFile:
    """Read the header of a safetensors file.

    Raises :class:`CheckpointNotFound`, :class:`UnknownLayout` (not a safetensors file) or
    :class:`CorruptCheckpoint` (header damaged, or tensors beyond the end: a cut download).
    Format: https://github.com/huggingface/safetensors#format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFound(f"{path}: no such file", "check the path, or `ladder models list`")
    size = path.stat().st_size
    header = _header_bytes(path, size)
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not a table")
    metadata = entries.pop("__metadata__", None) or {}
    tensors = {name: _tensor_info(path, name, entry) for name, entry in entries.items()}
    _check_extent(path, entries, size - 8 - len(header))
    return CheckpointFile(
        path=path,
        header_bytes=8 + len(header),
        metadata=metadata,
        tensors=tensors,
        config=_parse_config(path, metadata),
    )


def _header_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as opened:
        prefix = opened.read(8)
        if prefix[:4] == b"GGUF":
            raise UnknownLayout(
                f"{path.name}: GGUF files cannot be read by this version",
                "use a safetensors checkpoint",
            )
        if len(prefix) < 8:
            raise _damaged(path, f"it holds {size} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES or length < 2:
            raise UnknownLayout(
                f"{path.name}: not a safetensors file (header of {length} bytes)",
                "model files end in .safetensors; a web page saved by mistake looks like this",
            )
        if length > size - 8:
            raise _damaged(path, f"its header needs {length} bytes and {size - 8} are there")
        return opened.read(length)


def _tensor_info(path: Path, name: str, entry: Any) -> TensorInfo:
    try:
        shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"the entry of tensor {name} is malformed") from error
    if dtype not in BITS_PER_ELEMENT:
        raise UnknownLayout(
            f"{path.name}: tensor {name} has dtype {dtype}, known: {', '.join(BITS_PER_ELEMENT)}",
            "a newer version of latent-ladder may know it",
        )
    info = TensorInfo(shape, dtype)
    if end - begin != info.nbytes or min(shape, default=0) < 0:
        raise _damaged(path, f"tensor {name} occupies {end - begin} bytes, not {info.nbytes}")
    return info


def _check_extent(path: Path, entries: Mapping[str, Any], available: int) -> None:
    needed = max((e["data_offsets"][1] for e in entries.values()), default=0)
    if needed > available:
        missing = needed - available
        raise CorruptCheckpoint(
            f"{path.name}: truncated, {missing:,} bytes are missing at the end",
            "download it again; the download probably stopped early",
        )


def _parse_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get("config")
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _damaged(path, "the `config` in its header is not JSON") from error
    return config if isinstance(config, dict) else {}


def _damaged(path: Path, what: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{path.name}: damaged, {what}", "download the file again")
