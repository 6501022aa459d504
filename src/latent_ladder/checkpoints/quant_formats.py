"""Storage formats of tensors: plain numbers, or quantised with scales.

Combines a weight, its scales and its marker into one entry. Conventions: ComfyUI's ``comfy_quant``
markers, the ``_quantization_metadata`` in a header, the older ``scaled_fp8`` files
(``scale_weight``), a plain ``weight_scale`` next to fp8 or packed weights, and the block types of
GGUF. Without a marker, the stored types determine the format. Decodes nothing and needs no torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile
from latent_ladder.checkpoints.tensor_info import TensorInfo
from latent_ladder.errors import CorruptCheckpoint, UnsupportedQuantization

FLOATS: Mapping[str, str] = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}
"""Stored types of plain numbers -> format."""

PLAIN = frozenset(FLOATS.values())

QUANTIZED = (
    "fp8_e4m3", "fp8_e5m2", "nvfp4", "mxfp8", "int8",
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
)  # fmt: skip
"""Quantised formats that can be decoded."""

_RAW_FP8 = {"F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2"}
_NON_WEIGHT_TYPES = ("bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "c64")
"""Stored types of tensors that are not weights, such as a tokenizer's bytes or counters."""

_BY_MARKER = {
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
    "nvfp4": "nvfp4",
    "mxfp8": "mxfp8",
    "int8_tensorwise": "int8",
}
"""ComfyUI's name of a format -> the name here."""

_STORED_TYPES = {
    "fp8_e4m3": ("F8_E4M3", "F8_E5M2"),
    "fp8_e5m2": ("F8_E4M3", "F8_E5M2"),
    "nvfp4": ("U8", "F4"),
    "mxfp8": ("F8_E4M3",),
    "int8": ("I8",),
}
"""Format -> possible stored types of the weight."""

_TWO_PER_BYTE = ("nvfp4", "convrot_w4a4", "asym_w4a8_int8", "awq_w4a16", "svdquant_w4a4")
"""Formats with two weights per byte, stored with half the columns."""

_MARKER, _FILE_MARKER, _HEADER = "comfy_quant", "scaled_fp8", "_quantization_metadata"
_GGUF_MARKER = "comfy.gguf.quant."

_PARTS = {
    "weight_scale": "weight_scale",
    "weight_scale_2": "weight_scale_2",
    "pre_quant_scale": "pre_quant_scale",
    "scale_weight": "weight_scale",
    # Scales of inputs are for quantised arithmetic only, which is not used.
    "input_scale": None,
    "scale_input": None,
    _MARKER: None,
    # Parts of formats that are known but cannot be decoded.
    "weight_zeros": "weight_zeros",
    "weight_s_rel": "weight_s_rel",
    "weight_s_channel": "weight_s_channel",
    "weight_codebook": "weight_codebook",
    "proj_down": "proj_down",
    "proj_up": "proj_up",
    "smooth_factor": "smooth_factor",
}
"""Last word of a name next to ``<layer>.weight`` -> part of that weight; None: not needed."""

_UNDECODED_PARTS = {
    "weight_zeros": "awq_w4a16",
    "weight_codebook": "asym_w4a8_int8",
    "weight_s_rel": "asym_w4a8_int8",
    "proj_down": "svdquant_w4a4",
}


@dataclass(frozen=True)
class StoredTensor:
    """The storage of one tensor in a file.

    ``format`` is ``f32``, ``f16``, ``bf16``, one of :data:`QUANTIZED`, the name of a format that
    cannot be decoded, or a stored type in lower case (``u8``). ``shape`` is that after decoding;
    nvfp4 and mxfp8 may be padded to multiples of 16 and 32. ``parts`` maps ``weight``,
    ``weight_scale``, ``weight_scale_2``, ``pre_quant_scale`` to names in the file. ``options`` are
    those of the marker, ``nbytes`` is the size of all parts.
    """

    format: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    nbytes: int = 0


class _Marker(NamedTuple):
    """A marker of a quantised weight: ComfyUI's name of the format, and options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class StoredTensors(Mapping[str, StoredTensor]):
    """The logical tensors of a file by name, each with its parts; entries are computed on access.

    ``header_layers`` are the markers in the header, by layer.
    """

    file: CheckpointFile
    parts: Mapping[str, Mapping[str, str]]
    markers: Mapping[str, str]
    header_layers: Mapping[str, Mapping[str, Any]]
    _known: dict[str, StoredTensor] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.parts

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._known:
            self._known[name] = self._resolve(name)
        return self._known[name]

    def nbytes(self, name: str) -> int:
        """Size in bytes of a tensor with its scales and marker; reads no marker."""
        tensors, parts = self.file.tensors, self.parts[name]
        if len(parts) == 1 and not self.markers:
            return tensors[name].nbytes
        marker = self.markers.get(name)
        size = tensors[marker].nbytes if marker else 0
        return size + sum(tensors[part].nbytes for part in parts.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor after decoding; reads the marker of packed weights only."""
        weight = self.file.tensors[self.parts[name]["weight"]]
        return self[name].shape if weight.dtype in ("U8", "I8") else weight.shape

    def format_by_type(self, name: str) -> str:
        """The format as determined by the stored types; reads no marker."""
        parts = self.parts[name]
        if len(parts) == 1:  # for most tensors the type is enough
            kind = self.file.tensors[parts["weight"]].dtype
            return FLOATS.get(kind) or _RAW_FP8.get(kind) or kind.lower()
        return _format_by_types(_tensor_infos(self.file, parts))

    def check(self, name: str) -> StoredTensor:
        """The entry of a tensor, if it can be decoded.

        Raises :class:`UnsupportedQuantization` with the tensor, its format and the supported ones.
        """
        stored = self[name]
        if stored.format in (*FLOATS.values(), *QUANTIZED, *_NON_WEIGHT_TYPES):
            return stored
        known = ", ".join((*FLOATS.values(), *QUANTIZED))
        raise UnsupportedQuantization(
            f"{self.file.path.name}: tensor {name} is stored as {stored.format}, "
            f"which cannot be decoded; known: {known}",
            "use a file of the same model in one of the known formats (`ladder models` lists them)",
        )

    def _resolve(self, name: str) -> StoredTensor:
        infos = _tensor_infos(self.file, self.parts[name])
        marker = self._find_marker(name)
        format = _format_by_types(infos)
        if marker is not None:
            format = _resolve_format(self.file, name, marker, format, infos["weight"])
        options = marker.options if marker else {}
        shape = _logical_shape(format, infos["weight"])
        return StoredTensor(format, shape, self.parts[name], options, self.nbytes(name))

    def _find_marker(self, name: str) -> _Marker | None:
        """The marker of a weight: a tensor next to it, an entry in the header or GGUF metadata."""
        layer, _, last = name.rpartition(".")
        if name in self.markers:
            text = self.file.read_bytes(self.markers[name])
            return _parse(self.file, self.markers[name], text)
        if last == "weight" and layer in self.header_layers:
            return _read_marker(self.file, layer, self.header_layers[layer])
        if _GGUF_MARKER + name in self.file.kv:
            return _parse(self.file, name, self.file.kv[_GGUF_MARKER + name])
        return None


def stored_tensors(file: CheckpointFile) -> StoredTensors:
    """The logical tensors of a file: scales and markers belong to the entry of their weight.

    Computed once per file. Reads no tensors, except the marker of a weight on access. Raises
    :class:`CorruptCheckpoint` if the ``_quantization_metadata`` in the header is not JSON.
    """
    known = file.cached.get(_DERIVED)
    if not isinstance(known, StoredTensors):
        known = file.cached[_DERIVED] = _group_parts(file)
    return known


_DERIVED = "stored_tensors"


def _group_parts(file: CheckpointFile) -> StoredTensors:
    parts: dict[str, dict[str, str]] = {}
    markers: dict[str, str] = {}
    extras: list[tuple[str, str, str]] = []
    for name in file.tensors:
        last = name[name.rfind(".") + 1 :]
        if last in _PARTS and (weight := f"{name.removesuffix(last)}weight") in file.tensors:
            extras.append((weight, last, name))
        elif last != _FILE_MARKER:
            parts[name] = {"weight": name}
    for weight, last, name in extras:
        part = _PARTS[last]
        if last == _MARKER:
            markers[weight] = name
        elif part is not None:
            parts[weight][part] = name
    return StoredTensors(file, parts, markers, _header_layers(file))


def describe_precision(tensors: StoredTensors, names: Iterable[str]) -> str:
    """The common name of the format of most weights in ``names``.

    ``bf16``, ``fp8``, ``nvfp4``, ``q8_0``, ``q4_k_m`` ...; ``mixed`` if no format has half of them,
    ``none`` without weights. Counted in weights, not bytes: in a file called nvfp4, the few weights
    in bf16 need most of the bytes. Token embeddings do not count where there are other weights:
    llama.cpp stores them in another format than the layers, and in a small model they are most of
    it. A mix of GGUF is called as its metadata say.
    """
    names = list(names)
    names = [name for name in names if not name.endswith(_EMBEDDINGS)] or names
    kinds: Counter[tuple[TensorInfo, str]] = Counter()
    for name in names:
        kinds[
            tensors.file.tensors[tensors.parts[name]["weight"]], tensors.format_by_type(name)
        ] += 1
    counts: Counter[str] = Counter()
    for (weight, format), number in kinds.items():
        values = number * math.prod(_logical_shape(format, weight))
        if format not in _NON_WEIGHT_TYPES:
            counts["fp8" if format in _RAW_FP8.values() else format] += values
    if not counts:
        return "none"
    if mix := _mix_name(tensors.file, counts):
        return mix
    first, count = counts.most_common(1)[0]
    return first if 2 * count >= counts.total() else "mixed"


_EMBEDDINGS = ("embed_tokens.weight", "token_embd.weight", "lm_head.weight", "output.weight")


# `general.file_type` of GGUF files: llama.cpp's numbers of mixes that are named after one type.
_MIXES = {
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s",
    17: "q5_k_m", 21: "q2_k_s",
}  # fmt: skip


def _mix_name(file: CheckpointFile, formats: Collection[str]) -> str:
    """The name of a GGUF file's mix by its metadata; empty if it has no weights of that type.

    llama.cpp replaces the type where it does not fit the width of a layer, so in a small model few
    weights may have it.
    """
    number = file.kv.get("general.file_type")
    mix = _MIXES.get(number, "") if isinstance(number, int) else ""
    return mix if mix[: len("q4_k")] in formats else ""


def _tensor_infos(file: CheckpointFile, parts: Mapping[str, str]) -> dict[str, TensorInfo]:
    return {part: file.tensors[name] for part, name in parts.items()}


def _format_by_types(infos: Mapping[str, TensorInfo]) -> str:
    """The format of a weight by the stored types of the weight and its scales."""
    kind, scale = infos["weight"].dtype, infos.get("weight_scale")
    for part, format in _UNDECODED_PARTS.items():
        if part in infos:
            return format
    if kind in FLOATS:
        # A float that has a scale is not a plain float.
        return FLOATS[kind] if len(infos) == 1 else f"{FLOATS[kind]} with {_other_parts(infos)}"
    if kind in _RAW_FP8:
        blocks = scale is not None and (scale.dtype in ("F8_E8M0", "U8"))
        return "mxfp8" if blocks else _RAW_FP8[kind]
    if scale is not None and kind in ("U8", "F4", "I8"):
        return "int8" if kind == "I8" else "nvfp4"
    return kind.lower()


def _other_parts(infos: Mapping[str, TensorInfo]) -> str:
    return " and ".join(sorted(set(infos) - {"weight"}))


def _resolve_format(
    file: CheckpointFile, name: str, marker: _Marker, seen: str, weight: TensorInfo
) -> str:
    """The format that the marker states; that of the stored type for plain numbers.

    Raises :class:`CorruptCheckpoint` if the stored type does not match the marker.
    """
    format = _BY_MARKER.get(marker.name)
    if weight.dtype in FLOATS:
        return seen
    if format is None:
        return marker.name
    if weight.dtype not in _STORED_TYPES[format]:
        raise CorruptCheckpoint(
            f"{file.path.name}: damaged, tensor {name} is marked as {marker.name} and stored as "
            f"{weight.dtype}",
            "download the file again, or use another conversion of the model",
        )
    return _RAW_FP8[weight.dtype] if format in _RAW_FP8.values() else format


def _logical_shape(format: str, weight: TensorInfo) -> tuple[int, ...]:
    """The shape after decoding: packed columns count twice."""
    if format in _TWO_PER_BYTE and weight.dtype in ("U8", "I8") and weight.shape:
        return (*weight.shape[:-1], 2 * weight.shape[-1])
    return weight.shape


def _header_layers(file: CheckpointFile) -> Mapping[str, Mapping[str, Any]]:
    """The layers in the header's ``_quantization_metadata``; names include the file's prefix."""
    text = file.metadata.get(_HEADER)
    if text is None:
        return {}
    try:
        layers = json.loads(text).get("layers", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged_error(file, f"the `{_HEADER}` in its header is not JSON") from error
    return layers if isinstance(layers, Mapping) else {}


def _parse(file: CheckpointFile, where: str, text: bytes | str) -> _Marker:
    try:
        marker = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged_error(file, f"the marker {where} is not JSON") from error
    return _read_marker(file, where, marker)


def _read_marker(file: CheckpointFile, where: str, marker: Any) -> _Marker:
    """Parse ``{"format": ..., options}``; some programs nest the options under ``params``."""
    if not isinstance(marker, Mapping) or not isinstance(marker.get("format"), str):
        raise _damaged_error(file, f"the marker of {where} has no format")
    nested = marker.get("params")
    options = {k: v for k, v in marker.items() if k not in ("format", "params")}
    return _Marker(marker["format"], options | (nested if isinstance(nested, dict) else {}))


def _damaged_error(file: CheckpointFile, what: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{file.path.name}: damaged, {what}", "download the file again")
