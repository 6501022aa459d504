"""Reader of one checkpoint: keys, shapes, dtypes and metadata, with lazy reads of tensors.

Opening reads the header only, so a 46 GB checkpoint opens in milliseconds; tensors are views of a
memory mapping. Reads safetensors and GGUF, also split into several files. This module knows nothing
about the meaning of tensors (see :mod:`latent_ladder.checkpoints.components`).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ladder.checkpoints.file_sniffing import HEAD_BYTES, check_file_type
from latent_ladder.checkpoints.gguf import read_gguf_header
from latent_ladder.checkpoints.mmap_file import (
    MappedFile,
    damaged_error,
    read_error,
    refusing_damage,
    shorten,
)
from latent_ladder.checkpoints.safetensors import read_safetensors_header
from latent_ladder.checkpoints.shards import Shards, find_shards
from latent_ladder.checkpoints.tensor_info import BLOCKS, Header, TensorInfo, TensorLocation
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout, UnsupportedQuantization

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["CheckpointFile", "TensorInfo", "open_checkpoint"]

ID_SAMPLES, ID_SAMPLE_BYTES = 16, 4096

_TORCH_NAMES: Mapping[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64",
}  # fmt: skip

READABLE_BLOCK_TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
)  # fmt: skip
"""GGML block types that ``read`` returns as bytes."""


@dataclass(frozen=True)
class CheckpointFile:
    """The header of one checkpoint; :meth:`read` returns its tensors, memory-mapped.

    ``path`` is the file, or the index or first file of a checkpoint split into several files.
    ``container`` is ``safetensors``, ``gguf`` or ``pickle``. ``config`` is the JSON under
    ``config`` in the header. ``kv`` is the metadata of a GGUF file, parsed on access. ``locations``
    says where each tensor is stored.
    """

    path: Path
    header_bytes: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] = field(default_factory=dict)
    container: str = "safetensors"
    kv: Mapping[str, Any] = field(default_factory=dict)
    locations: Mapping[str, TensorLocation] = field(default_factory=dict, repr=False)
    parts: tuple[tuple[MappedFile, int], ...] = ()
    """The files, each with the size of its header in bytes."""
    cached: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """Cache of other modules for what they derive from this header."""

    @cached_property
    def id(self) -> str:
        """Identifies the content in artefact keys; equal for equal files in any folder.

        Made of the size and a hash over the header, which lists all tensors with their offsets, and
        16 samples of 4 KiB spread over the data. Hashing 46 GB at every start would take minutes;
        a fine-tune with the same names and shapes still differs in the samples.
        """
        ids = [_sampled_id(part, header) for part, header in self.parts]
        if len(ids) == 1:
            return ids[0]
        digest = hashlib.blake2b(" ".join(ids).encode(), digest_size=12)
        return f"{sum(part.size for part, _ in self.parts):x}-{digest.hexdigest()}"

    @property
    def size(self) -> int:
        """Size of all tensors in bytes."""
        return sum(t.nbytes for t in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """The tensor ``name`` in its stored dtype, memory-mapped on the CPU.

        A GGML block type is returned as ``uint8`` of shape (rows, bytes per row); F4 as torch's
        type of two values per byte, with half the last dimension. Raises
        :class:`CorruptCheckpoint` if the file has changed or has no such tensor,
        :class:`UnsupportedQuantization` for a type that torch does not have.
        """
        import torch

        location = self._locate(name)
        dtype, shape = self._torch_layout(name, location)
        if location.end == location.begin:
            return torch.empty(shape, dtype=dtype)
        mapped = self._map_tensor(location)
        # Old writers do not align tensors; torch needs an offset of whole elements.
        aligned = mapped.clone() if location.begin % dtype.itemsize else mapped
        return aligned.view(dtype).reshape(shape)

    def load(self, name: str, out: Tensor | None = None) -> Tensor:
        """Like :meth:`read`, but copied into memory: later changes of the file do not affect it.

        ``out`` is a 1-D ``uint8`` tensor of its size to fill, e.g. in pinned memory.
        """
        import torch

        location = self._locate(name)
        dtype, shape = self._torch_layout(name, location)
        target = (
            torch.empty(location.end - location.begin, dtype=torch.uint8) if out is None else out
        )
        self.parts[location.part][0].read_into(target.numpy().data, location.begin)
        return target.view(dtype).reshape(shape)

    def read_bytes(self, name: str) -> bytes:
        """The bytes of the tensor ``name``, without torch; for texts that are stored as tensors."""
        location, info = self._locate(name), self.tensors[name]
        if info.dtype not in BLOCKS:
            raise self._unsupported_error(name, info)
        return bytes(self.parts[location.part][0].buffer[location.begin : location.end])

    def check_unchanged(self) -> None:
        """Raise :class:`CorruptCheckpoint` if a file has changed since it was opened."""
        for part, _ in self.parts:
            part.check_unchanged()

    def _locate(self, name: str) -> TensorLocation:
        if name not in self.locations:
            raise CorruptCheckpoint(
                f"{self.path.name}: tensor {name} is not in the file",
                "check that it is the right file, or download it again",
            )
        location = self.locations[name]
        self.parts[location.part][0].check_unchanged()
        return location

    def _torch_layout(
        self, name: str, location: TensorLocation
    ) -> tuple[torch.dtype, tuple[int, ...]]:
        """The torch dtype and shape of the stored bytes of ``name``."""
        import torch

        info = self.tensors[name]
        if info.dtype in READABLE_BLOCK_TYPES:
            return torch.uint8, location.rows or (0, 0)
        dtype = getattr(torch, _TORCH_NAMES.get(info.dtype, ""), None)
        if not isinstance(dtype, torch.dtype):
            raise self._unsupported_error(name, info)
        if info.dtype == "F4":
            return dtype, (*info.shape[:-1], info.shape[-1] // 2)
        return dtype, info.shape

    def _map_tensor(self, location: TensorLocation) -> Tensor:
        import torch

        file, count = self.parts[location.part][0], location.end - location.begin
        if file.writable:
            return torch.frombuffer(
                file.buffer, dtype=torch.uint8, count=count, offset=location.begin
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            return torch.frombuffer(
                file.buffer, dtype=torch.uint8, count=count, offset=location.begin
            )

    def _unsupported_error(self, name: str, info: TensorInfo) -> UnsupportedQuantization:
        known = READABLE_BLOCK_TYPES if self.container == "gguf" else tuple(_TORCH_NAMES)
        return UnsupportedQuantization(
            f"{self.path.name}: tensor {name} is stored as {info.dtype}, which cannot be read; "
            f"known: {', '.join(known)}",
            "use a file of the same model in one of the known formats",
        )


def open_checkpoint(path: Path | str) -> CheckpointFile:
    """Read the header of a safetensors or GGUF checkpoint, also one split into several files.

    ``path`` is a model file, an index (``*.safetensors.index.json``), any one of the files
    ``name-00001-of-00003.safetensors`` or ``.gguf``, or a folder with one such set. The format is
    detected by content. Raises :class:`CheckpointNotFound`, :class:`UnknownLayout` (not a model
    file; the message names its format) or :class:`CorruptCheckpoint` (damaged or truncated).
    """
    with refusing_damage(Path(path)):
        shards = find_shards(Path(path))
        files = [MappedFile.from_path(part) for part in shards.parts]
        headers = [_read_header(file) for file in files]
        return _join_headers(shards, files, headers)


def _read_header(file: MappedFile) -> Header:
    head = file.head(HEAD_BYTES)
    check_file_type(file, head)
    return (read_gguf_header if head[:4] == b"GGUF" else read_safetensors_header)(file)


def _join_headers(shards: Shards, files: list[MappedFile], headers: list[Header]) -> CheckpointFile:
    """One :class:`CheckpointFile` for all files; its metadata is that of the first file."""
    first = headers[0]
    _check_split(shards, headers)
    if len(headers) == 1 and not shards.weight_map:
        tensors, locations = first.tensors, first.locations
    else:
        tensors, locations = _merge_tensors(shards, headers)
    return CheckpointFile(
        path=shards.path,
        header_bytes=sum(header.length for header in headers),
        metadata=first.metadata,
        tensors=tensors,
        config=_parse_config(shards.path, first.metadata),
        container=first.container,
        kv=first.kv,
        locations=locations,
        parts=tuple((file, header.length) for file, header in zip(files, headers, strict=True)),
    )


def _merge_tensors(
    shards: Shards, headers: list[Header]
) -> tuple[dict[str, TensorInfo], dict[str, TensorLocation]]:
    """The tensors of all files, with the number of the file of each in its location."""
    tensors: dict[str, TensorInfo] = {}
    locations: dict[str, TensorLocation] = {}
    for number, header in enumerate(headers):
        for name, info in header.tensors.items():
            if shards.part_of(name, number) != number:
                continue
            if name in tensors:
                raise damaged_error(shards.path, f"tensor {shorten(name)} is in two of its files")
            tensors[name], locations[name] = info, header.locations[name]._replace(part=number)
    shards.check_complete(tensors)
    return tensors, locations


def _check_split(shards: Shards, headers: list[Header]) -> None:
    """Raise if the files differ in format, or are not in the order of their GGUF headers."""
    for number, header in enumerate(headers):
        if header.container != headers[0].container:
            raise damaged_error(shards.path, "its files are of different formats")
        count = header.kv.get("split.count", 1)
        if count not in (0, 1, len(headers)) or header.kv.get("split.no", number) != number:
            raise UnknownLayout(
                f"{shards.parts[number].name}: one of the {shorten(count)} files of a split "
                "GGUF model, with a wrong name or in a wrong folder",
                "name them name-00001-of-0000N.gguf, in order and in one folder, or merge them "
                "with llama-gguf-split --merge",
            )


def _sampled_id(file: MappedFile, header_bytes: int) -> str:
    data = file.size - header_bytes
    digest = hashlib.blake2b(digest_size=12)
    file.check_unchanged()
    try:
        with file.path.open("rb") as opened:
            digest.update(opened.read(header_bytes))
            for k in range(ID_SAMPLES):
                opened.seek(header_bytes + max(0, data - ID_SAMPLE_BYTES) * k // ID_SAMPLES)
                digest.update(opened.read(ID_SAMPLE_BYTES))
    except OSError as error:
        raise read_error(file.path, error) from error
    return f"{file.size:x}-{digest.hexdigest()}"


def _parse_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get("config")
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged_error(path, "the `config` in its header is not JSON") from error
    return config if isinstance(config, dict) else {}
