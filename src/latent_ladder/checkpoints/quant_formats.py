"""How each tensor of a file is stored: as numbers, or quantised with scales beside it.

Folds what belongs together into one entry: a weight, its scales and its marker. Conventions:
ComfyUI's ``comfy_quant`` markers, the ``_quantization_metadata`` of a header, the older
``scaled_fp8`` files (``scale_weight``), plain ``weight_scale`` beside fp8 or packed weights, and
the block types of GGUF. Where no marker is given, the stored types tell the format. Decodes
nothing and imports no torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile
from latent_ladder.checkpoints.tensor_info import TensorInfo
from latent_ladder.errors import CorruptCheckpoint, UnsupportedQuantization

FLOATS: Mapping[str, str] = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}
"""Stored types that are numbers -> format."""

PLAIN = frozenset(FLOATS.values())

QUANTIZED = (
    "fp8_e4m3", "fp8_e5m2", "nvfp4", "mxfp8", "int8",
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
)  # fmt: skip
"""Formats that are decoded."""

_RAW_FP8 = {"F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2"}
_DATA = ("bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "c64")
"""Stored types of tensors that are no weights: a tokenizer's bytes, counters."""

_BY_MARKER = {
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
    "nvfp4": "nvfp4",
    "mxfp8": "mxfp8",
    "int8_tensorwise": "int8",
}
"""ComfyUI's name of a format -> ours."""

_TYPES_OF = {
    "fp8_e4m3": ("F8_E4M3", "F8_E5M2"),
    "fp8_e5m2": ("F8_E4M3", "F8_E5M2"),
    "nvfp4": ("U8", "F4"),
    "mxfp8": ("F8_E4M3",),
    "int8": ("I8",),
}
"""What the weight of a format is stored as."""

_PACKED_TWO = ("nvfp4", "convrot_w4a4", "asym_w4a8_int8", "awq_w4a16", "svdquant_w4a4")
"""Formats with two weights in a byte, the columns halved."""

_MARKER, _FILE_MARKER, _HEADER = "comfy_quant", "scaled_fp8", "_quantization_metadata"
_GGUF_MARKER = "comfy.gguf.quant."

_PARTS = {
    "weight_scale": "weight_scale",
    "weight_scale_2": "weight_scale_2",
    "pre_quant_scale": "pre_quant_scale",
    "scale_weight": "weight_scale",
    # Scales of inputs serve quantised arithmetic only; weights are decoded here.
    "input_scale": None,
    "scale_input": None,
    _MARKER: None,
    # Formats that are known by name, not decoded.
    "weight_zeros": "weight_zeros",
    "weight_s_rel": "weight_s_rel",
    "weight_s_channel": "weight_s_channel",
    "weight_codebook": "weight_codebook",
    "proj_down": "proj_down",
    "proj_up": "proj_up",
    "smooth_factor": "smooth_factor",
}
"""Last word of a name beside ``<layer>.weight`` -> part of that weight; None: not needed."""

_FOREIGN_PARTS = {
    "weight_zeros": "awq_w4a16",
    "weight_codebook": "asym_w4a8_int8",
    "weight_s_rel": "asym_w4a8_int8",
    "proj_down": "svdquant_w4a4",
}


@dataclass(frozen=True)
class StoredTensor:
    """How one tensor lies in its file.

    ``format`` is ``f32``, ``f16``, ``bf16``, one of :data:`QUANTIZED`, the name of a format that
    is not decoded, or a stored type in lower case (``u8``). ``shape`` is logical: what the
    numbers have once decoded; nvfp4 and mxfp8 may be padded up to multiples of 16 and 32.
    ``parts`` maps ``weight``, ``weight_scale``, ``weight_scale_2``, ``pre_quant_scale`` to names
    in the file, ``options`` is what the marker adds, ``nbytes`` counts all parts.
    """

    format: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    nbytes: int = 0


class _Marked(NamedTuple):
    """What a marker says: the format's name, and its options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class StoredTensors(Mapping[str, StoredTensor]):
    """The logical tensors of a file; each is worked out when it is asked for."""

    file: CheckpointFile
    parts: Mapping[str, Mapping[str, str]]
    markers: Mapping[str, str]
    stated: Mapping[str, Mapping[str, Any]]
    _known: dict[str, StoredTensor] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.parts

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._known:
            self._known[name] = self._stored(name)
        return self._known[name]

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor and all that belongs to it; reads no marker."""
        tensors, parts = self.file.tensors, self.parts[name]
        if len(parts) == 1 and not self.markers:
            return tensors[name].nbytes
        marker = self.markers.get(name)
        size = tensors[marker].nbytes if marker else 0
        return size + sum(tensors[part].nbytes for part in parts.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor once decoded; reads a marker only of packed bytes."""
        weight = self.file.tensors[self.parts[name]["weight"]]
        return self[name].shape if weight.dtype in ("U8", "I8") else weight.shape

    def seen_format(self, name: str) -> str:
        """The format as far as stored types tell; reads no marker."""
        parts = self.parts[name]
        if len(parts) == 1:  # of most tensors the type says all
            kind = self.file.tensors[parts["weight"]].dtype
            return FLOATS.get(kind) or _RAW_FP8.get(kind) or kind.lower()
        return _format_by_types(_infos(self.file, parts))

    def check(self, name: str) -> StoredTensor:
        """The entry of a tensor that can be decoded.

        Raises :class:`UnsupportedQuantization` with the tensor, its format and the known ones.
        """
        stored = self[name]
        if stored.format in (*FLOATS.values(), *QUANTIZED, *_DATA):
            return stored
        known = ", ".join((*FLOATS.values(), *QUANTIZED))
        raise UnsupportedQuantization(
            f"{self.file.path.name}: tensor {name} is stored as {stored.format}, "
            f"which cannot be decoded; known: {known}",
            "use a file of the same model in one of the known formats (`ladder models` lists them)",
        )

    def _stored(self, name: str) -> StoredTensor:
        infos = _infos(self.file, self.parts[name])
        marked = self._marked(name)
        found = _format_by_types(infos)
        if marked is not None:
            found = _agreed(self.file, name, marked, found, infos["weight"])
        options = marked.options if marked else {}
        shape = _logical(found, infos["weight"])
        return StoredTensor(found, shape, self.parts[name], options, self.nbytes(name))

    def _marked(self, name: str) -> _Marked | None:
        """The marker of a weight: a tensor beside it, a line of the header, or GGUF metadata."""
        layer, _, last = name.rpartition(".")
        if name in self.markers:
            text = self.file.read_bytes(self.markers[name])
            return _parse(self.file, self.markers[name], text)
        if last == "weight" and layer in self.stated:
            return _read_marker(self.file, layer, self.stated[layer])
        if _GGUF_MARKER + name in self.file.kv:
            return _parse(self.file, name, self.file.kv[_GGUF_MARKER + name])
        return None


def stored_tensors(file: CheckpointFile) -> StoredTensors:
    """Logical name in the file -> how it lies there. Scales, markers and input scales are folded.

    Worked out once for each file. Reads no tensor; the markers of weights are read when those are
    asked for. Raises :class:`CorruptCheckpoint` where the header's ``_quantization_metadata`` is
    no JSON.
    """
    known = file.derived.get(_DERIVED)
    if not isinstance(known, StoredTensors):
        known = file.derived[_DERIVED] = _folded(file)
    return known


_DERIVED = "stored_tensors"


def _folded(file: CheckpointFile) -> StoredTensors:
    parts: dict[str, dict[str, str]] = {}
    markers: dict[str, str] = {}
    beside: list[tuple[str, str, str]] = []
    for name in file.tensors:
        last = name[name.rfind(".") + 1 :]
        if last in _PARTS and (weight := f"{name.removesuffix(last)}weight") in file.tensors:
            beside.append((weight, last, name))
        elif last != _FILE_MARKER:
            parts[name] = {"weight": name}
    for weight, last, name in beside:
        part = _PARTS[last]
        if last == _MARKER:
            markers[weight] = name
        elif part is not None:
            parts[weight][part] = name
    return StoredTensors(file, parts, markers, _stated(file))


def precision(tensors: StoredTensors, names: Iterable[str]) -> str:
    """How most of the weights of ``names`` are stored, as people call it.

    ``bf16``, ``fp8``, ``nvfp4``, ``q8_0``, ``q4_k_m`` ...; ``mixed`` where no kind has half of
    them. Counted in weights, not bytes: in a file that is called nvfp4 the few weights left in
    bf16 take most of the bytes.
    """
    kinds: Counter[tuple[TensorInfo, str]] = Counter()
    for name in names:
        kinds[tensors.file.tensors[tensors.parts[name]["weight"]], tensors.seen_format(name)] += 1
    counts: Counter[str] = Counter()
    for (weight, format), number in kinds.items():
        values = number * math.prod(_logical(format, weight))
        if format not in _DATA:
            counts["fp8" if format in _RAW_FP8.values() else format] += values
    if not counts:
        return "none"
    first, count = counts.most_common(1)[0]
    return _mix_name(tensors.file, first) if 2 * count >= counts.total() else "mixed"


# `general.file_type` of GGUF files: llama.cpp's numbers of the mixes that are named after one type.
_MIXES = {
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s",
    17: "q5_k_m", 21: "q2_k_s",
}  # fmt: skip


def _mix_name(file: CheckpointFile, format: str) -> str:
    """The name of a GGUF file's mix where its metadata agree with its tensors."""
    number = file.kv.get("general.file_type")
    mix = _MIXES.get(number, "") if isinstance(number, int) else ""
    return mix if mix.startswith(format) else format


def _infos(file: CheckpointFile, parts: Mapping[str, str]) -> dict[str, TensorInfo]:
    return {part: file.tensors[name] for part, name in parts.items()}


def _format_by_types(infos: Mapping[str, TensorInfo]) -> str:
    """The format that the stored types of a weight and its scales single out."""
    kind, scale = infos["weight"].dtype, infos.get("weight_scale")
    for part, format in _FOREIGN_PARTS.items():
        if part in infos:
            return format
    if kind in FLOATS:
        # A float that is to be multiplied by a scale is no plain float.
        return FLOATS[kind] if len(infos) == 1 else f"{FLOATS[kind]} with {_others(infos)}"
    if kind in _RAW_FP8:
        blocks = scale is not None and (scale.dtype in ("F8_E8M0", "U8"))
        return "mxfp8" if blocks else _RAW_FP8[kind]
    if scale is not None and kind in ("U8", "F4", "I8"):
        return "int8" if kind == "I8" else "nvfp4"
    return kind.lower()


def _others(infos: Mapping[str, TensorInfo]) -> str:
    return " and ".join(sorted(set(infos) - {"weight"}))


def _agreed(file: CheckpointFile, name: str, marked: _Marked, seen: str, weight: TensorInfo) -> str:
    """The marker's format. Where a weight is plain numbers, its type is believed instead."""
    format = _BY_MARKER.get(marked.name)
    if weight.dtype in FLOATS:
        return seen
    if format is None:
        return marked.name
    if weight.dtype not in _TYPES_OF[format]:
        raise CorruptCheckpoint(
            f"{file.path.name}: damaged, tensor {name} is marked as {marked.name} and stored as "
            f"{weight.dtype}",
            "download the file again, or take another conversion of it",
        )
    return _RAW_FP8[weight.dtype] if format in _RAW_FP8.values() else format


def _logical(format: str, weight: TensorInfo) -> tuple[int, ...]:
    """The shape once decoded: packed columns count twice."""
    if format in _PACKED_TWO and weight.dtype in ("U8", "I8") and weight.shape:
        return (*weight.shape[:-1], 2 * weight.shape[-1])
    return weight.shape


def _stated(file: CheckpointFile) -> Mapping[str, Mapping[str, Any]]:
    """The layers of the header's ``_quantization_metadata``; names carry the file's prefix."""
    text = file.metadata.get(_HEADER)
    if text is None:
        return {}
    try:
        layers = json.loads(text).get("layers", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"the `{_HEADER}` in its header is not JSON") from error
    return layers if isinstance(layers, Mapping) else {}


def _parse(file: CheckpointFile, where: str, text: bytes | str) -> _Marked:
    try:
        marker = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"the marker {where} is not JSON") from error
    return _read_marker(file, where, marker)


def _read_marker(file: CheckpointFile, where: str, marker: Any) -> _Marked:
    """``{"format": ..., options}``; some writers nest the options under ``params``."""
    if not isinstance(marker, Mapping) or not isinstance(marker.get("format"), str):
        raise _damaged(file, f"the marker of {where} names no format")
    nested = marker.get("params")
    options = {k: v for k, v in marker.items() if k not in ("format", "params")}
    return _Marked(marker["format"], options | (nested if isinstance(nested, dict) else {}))


def _damaged(file: CheckpointFile, what: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{file.path.name}: damaged, {what}", "download the file again")
