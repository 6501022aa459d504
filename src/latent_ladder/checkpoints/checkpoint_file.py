"""One model file: its keys, shapes, dtypes and metadata, with lazy reads.

Opening reads the header only, so a 46 GB checkpoint opens in milliseconds; tensors are parts of a
memory mapping. Knows safetensors, GGUF, and either split over several files; knows nothing about
what the tensors mean (that is :mod:`latent_ladder.checkpoints.components`).
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

from latent_ladder.checkpoints.file_sniffing import HEAD_BYTES, refuse_stranger
from latent_ladder.checkpoints.gguf import read_gguf_header
from latent_ladder.checkpoints.mmap_file import MappedFile, damaged, refused, shortened
from latent_ladder.checkpoints.safetensors import read_safetensors_header
from latent_ladder.checkpoints.shards import Shards, find_shards
from latent_ladder.checkpoints.tensor_info import BLOCKS, Header, Place, TensorInfo
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

READABLE_BLOCKS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
)  # fmt: skip
"""GGML block types whose bytes ``read`` hands out."""


@dataclass(frozen=True)
class CheckpointFile:
    """The header of one checkpoint. ``read`` is lazy and memory-mapped.

    ``path`` is the file; of a checkpoint in several files it is the index, or the first of them.
    ``container`` is ``safetensors`` or ``gguf``. ``config`` is the JSON under ``config`` in the
    header. ``kv`` holds the metadata of a GGUF file; its arrays are parsed when asked for.
    """

    path: Path
    header_bytes: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] = field(default_factory=dict)
    container: str = "safetensors"
    kv: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict, repr=False)
    parts: tuple[tuple[MappedFile, int], ...] = ()
    """The files, each with the bytes of its header."""
    derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What other modules worked out from this header, so that each does so once."""

    @cached_property
    def id(self) -> str:
        """Names the content for artefact keys, equal for equal files wherever they lie.

        It is the size and a hash of the header, which lists every tensor with its place, and of
        16 samples of 4 KiB spread over the data. Hashing 46 GB at every start would cost minutes;
        a fine-tune that keeps every name and shape still differs in a sample.
        """
        ids = [_sampled_id(part, header) for part, header in self.parts]
        if len(ids) == 1:
            return ids[0]
        digest = hashlib.blake2b(" ".join(ids).encode(), digest_size=12)
        return f"{sum(part.size for part, _ in self.parts):x}-{digest.hexdigest()}"

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """The tensor ``name`` in its stored dtype, memory-mapped on the CPU.

        A GGML block type comes as ``uint8`` of shape (rows, bytes per row); F4 as torch's pairs,
        its last dimension halved. Raises :class:`CorruptCheckpoint` when the file changed or the
        name is not in it, :class:`UnsupportedQuantization` for a type torch has no name for.
        """
        import torch

        place = self._place(name)
        dtype, shape = self._stored_as(name, place)
        if place.end == place.begin:
            return torch.empty(shape, dtype=dtype)
        mapped = self._mapped(place)
        # An old writer may leave its tensors askew; torch wants whole elements from the start.
        whole = mapped.clone() if place.begin % dtype.itemsize else mapped
        return whole.view(dtype).reshape(shape)

    def load(self, name: str, out: Tensor | None = None) -> Tensor:
        """As ``read``, but in memory of its own, filled by plain reads.

        Nothing that happens to the file later can reach it. ``out``: a 1-D ``uint8`` tensor of
        its bytes to fill, e.g. in pinned memory.
        """
        import torch

        place = self._place(name)
        dtype, shape = self._stored_as(name, place)
        target = torch.empty(place.end - place.begin, dtype=torch.uint8) if out is None else out
        self.parts[place.part][0].read_into(target.numpy().data, place.begin)
        return target.view(dtype).reshape(shape)

    def read_bytes(self, name: str) -> bytes:
        """The bytes of the tensor ``name``, without torch: for texts stored as tensors."""
        place, info = self._place(name), self.tensors[name]
        if info.dtype not in BLOCKS:
            raise self._unsupported(name, info)
        return bytes(self.parts[place.part][0].buffer[place.begin : place.end])

    def check_unchanged(self) -> None:
        """Raise :class:`CorruptCheckpoint` when a file changed since it was opened."""
        for part, _ in self.parts:
            part.check_unchanged()

    def _place(self, name: str) -> Place:
        if name not in self.places:
            raise CorruptCheckpoint(
                f"{self.path.name}: cannot read tensor {name}: it is not in the file",
                "download the file again or check that it is the one you mean",
            )
        place = self.places[name]
        self.parts[place.part][0].check_unchanged()
        return place

    def _stored_as(self, name: str, place: Place) -> tuple[torch.dtype, tuple[int, ...]]:
        """The dtype and shape that the bytes of ``name`` have as a tensor."""
        import torch

        info = self.tensors[name]
        if info.dtype in READABLE_BLOCKS:
            return torch.uint8, place.rows or (0, 0)
        dtype = getattr(torch, _TORCH_NAMES.get(info.dtype, ""), None)
        if not isinstance(dtype, torch.dtype):
            raise self._unsupported(name, info)
        if info.dtype == "F4":
            return dtype, (*info.shape[:-1], info.shape[-1] // 2)
        return dtype, info.shape

    def _mapped(self, place: Place) -> Tensor:
        import torch

        file, count = self.parts[place.part][0], place.end - place.begin
        if file.writable:
            return torch.frombuffer(file.buffer, dtype=torch.uint8, count=count, offset=place.begin)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            return torch.frombuffer(file.buffer, dtype=torch.uint8, count=count, offset=place.begin)

    def _unsupported(self, name: str, info: TensorInfo) -> UnsupportedQuantization:
        known = READABLE_BLOCKS if self.container == "gguf" else tuple(_TORCH_NAMES)
        return UnsupportedQuantization(
            f"{self.path.name}: tensor {name} is stored as {info.dtype}, which cannot be read; "
            f"known: {', '.join(known)}",
            "use a file of the same model in one of the known formats",
        )


def open_checkpoint(path: Path | str) -> CheckpointFile:
    """Read the header of a safetensors or GGUF file, or of all files of one that was split.

    ``path`` is a model file, an index (``*.safetensors.index.json``), any one of the files
    ``name-00001-of-00003.safetensors`` or ``.gguf``, or a folder with one such set.
    What it is shows in its content. Raises :class:`CheckpointNotFound`, :class:`UnknownLayout`
    (not a model file, with what it is instead) or :class:`CorruptCheckpoint` (damaged, cut off).
    """
    shards = find_shards(Path(path))
    files = [MappedFile.at(part) for part in shards.parts]
    headers = [_read_header(file) for file in files]
    return _joined(shards, files, headers)


def _read_header(file: MappedFile) -> Header:
    head = file.head(HEAD_BYTES)
    refuse_stranger(file, head)
    return (read_gguf_header if head[:4] == b"GGUF" else read_safetensors_header)(file)


def _joined(shards: Shards, files: list[MappedFile], headers: list[Header]) -> CheckpointFile:
    """One view of all parts. The metadata is that of the first; every name lies in one part."""
    first = headers[0]
    _check_split(shards, headers)
    whole = len(headers) == 1 and not shards.weight_map
    tensors, places = (first.tensors, first.places) if whole else _united(shards, headers)
    return CheckpointFile(
        path=shards.path,
        header_bytes=sum(header.length for header in headers),
        metadata=first.metadata,
        tensors=tensors,
        config=_parse_config(shards.path, first.metadata),
        container=first.container,
        kv=first.kv,
        places=places,
        parts=tuple((file, header.length) for file, header in zip(files, headers, strict=True)),
    )


def _united(
    shards: Shards, headers: list[Header]
) -> tuple[dict[str, TensorInfo], dict[str, Place]]:
    """The tensors of all files, each with the number of the one it is in."""
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    for number, header in enumerate(headers):
        for name, info in header.tensors.items():
            if shards.holder(name, number) != number:
                continue
            if name in tensors:
                raise damaged(shards.path, f"tensor {shortened(name)} is in two of its files")
            tensors[name], places[name] = info, header.places[name]._replace(part=number)
    shards.check_complete(tensors)
    return tensors, places


def _check_split(shards: Shards, headers: list[Header]) -> None:
    """Parts of one kind; those of a GGUF file say in their headers how many there are."""
    for number, header in enumerate(headers):
        if header.container != headers[0].container:
            raise damaged(shards.path, "its files are of different formats")
        count = header.kv.get("split.count", 1)
        if count not in (0, 1, len(headers)) or header.kv.get("split.no", number) != number:
            raise UnknownLayout(
                f"{shards.parts[number].name}: one of the {shortened(count)} files of a split "
                "GGUF model, in a wrong place or under a wrong name",
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
        raise refused(file.path, error) from error
    return f"{file.size:x}-{digest.hexdigest()}"


def _parse_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get("config")
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "the `config` in its header is not JSON") from error
    return config if isinstance(config, dict) else {}
