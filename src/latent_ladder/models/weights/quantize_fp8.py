"""Quantisation of weights to fp8: while loading, or into a checkpoint file that ComfyUI reads.

Each matrix has one scale, its largest magnitude divided by fp8's largest number, so no weight is
clamped. Only the matrices of the video stream's attention and feed-forward and of audio-video
attention are converted: four fifths of all weights. Gates, norms, modulation and the layers of
the audio stream keep their dtype.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.tensor_info import TensorInfo
from latent_ladder.errors import CheckpointError, UnsupportedQuantization
from latent_ladder.models.weights.dequantize import CHUNK_WEIGHTS, FORMATS
from latent_ladder.models.weights.loading import TensorReader
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

FP8_MAX = 448.0
ALIGNMENT = 8

_FP8_WEIGHT = re.compile(
    r"transformer_blocks\.\d+\."
    r"(?:(?:attn1|attn2|audio_to_video_attn|video_to_audio_attn)\.to_(?:q|k|v|out\.0)"
    r"|ff\.net\.(?:0\.proj|2))\.weight"
)


def is_fp8_weight(name: str) -> bool:
    """Return True if the transformer's tensor ``name`` is converted to fp8."""
    return _FP8_WEIGHT.fullmatch(name) is not None


@torch.no_grad()
def quantize_fp8(weight: Tensor) -> QuantizedTensor:
    """Quantise a float matrix (out, in) to fp8 (e4m3) with one float32 scale, on its device."""
    scale = fp8_scale(weight)
    stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    for rows in _chunks(weight):
        scaled = (weight[rows].float() / scale).clamp_(-FP8_MAX, FP8_MAX)
        stored[rows] = scaled.to(torch.float8_e4m3fn)
    parts = {"weight": stored, "weight_scale": scale}
    return QuantizedTensor("fp8_e4m3", tuple(weight.shape), parts)


def fp8_scale(weight: Tensor) -> Tensor:
    """Scale of a matrix, float32: its largest magnitude over fp8's; 1 if all weights are zero."""
    # In chunks: `abs` of the whole matrix would be a second copy of it.
    largest = torch.stack([weight[rows].abs().amax() for rows in _chunks(weight)]).amax().float()
    return torch.where(largest > 0, largest / FP8_MAX, torch.ones_like(largest))


@dataclass(frozen=True)
class Fp8TensorReader(TensorReader):
    """Reader that converts a float matrix to fp8 on ``device``; quantised ones are unchanged."""

    device: torch.device | str

    def __call__(self) -> Tensor | QuantizedTensor:
        metadata = super().__call__()
        return (
            metadata
            if isinstance(metadata, QuantizedTensor)
            else quantize_fp8(metadata.to(self.device))
        )


def _chunks(weight: Tensor) -> Iterator[slice]:
    step = max(1, CHUNK_WEIGHTS.get(weight.device.type, CHUNK_WEIGHTS["cuda"]) // weight.shape[1])
    return (slice(start, start + step) for start in range(0, len(weight), step))


# --- a checkpoint file ----------------------------------------------------------------------------

METADATA = "_quantization_metadata"


class _TensorEntry(NamedTuple):
    """Tensor to write: name, safetensors dtype, shape, and a function that returns its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], bytes]

    @property
    def nbytes(self) -> int:
        return TensorInfo(self.shape, self.dtype).nbytes


def write_fp8_checkpoint(components: Sequence[Component], path: Path) -> None:
    """Write components to a safetensors file, with the transformer's large matrices in fp8.

    Tensor names are those of the source. Each converted ``<layer>.weight`` gets a float32
    ``<layer>.weight_scale``, and ``_quantization_metadata`` in the header lists the layers, as
    ComfyUI expects. One tensor is in memory at a time; the file appears when it is complete.
    Raises :class:`UnsupportedQuantization` if a source is already quantised, and
    :class:`CheckpointError` if two components have a tensor of the same name.
    """
    entries = [entry for component in components for entry in _tensor_entries(component)]
    # Wider dtypes first, so that every tensor is aligned.
    entries.sort(key=lambda e: (-TensorInfo((1,), e.dtype).nbytes, e.name))
    header = _encode_header(entries, _metadata(components, entries))
    partial_path = path.with_name(f"{path.name}.partial")
    try:
        with partial_path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for entry in entries:
                file.write(entry.data())
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def _tensor_entries(component: Component) -> Iterator[_TensorEntry]:
    for key, name in component.names.items():
        if component.stored_tensor(key).format in FORMATS:
            raise UnsupportedQuantization(
                f"{component.file.path.name}: {name} is already quantised "
                f"({component.stored_tensor(key).format}), expected a file of bf16, f16 or f32",
                "convert the bf16 checkpoint: quantising twice loses quality",
            )
        info = component.file.tensors[name]
        if component.role != "transformer" or not is_fp8_weight(key):
            yield _TensorEntry(
                name, info.dtype, info.shape, partial(component.file.read_bytes, name)
            )
            continue
        yield _TensorEntry(
            name, "F8_E4M3", info.shape, partial(_converted_bytes, component, key, "weight")
        )
        scale = f"{name.removesuffix('.weight')}.weight_scale"
        yield _TensorEntry(
            scale, "F32", (), partial(_converted_bytes, component, key, "weight_scale")
        )


def _converted_bytes(component: Component, key: str, part: str) -> bytes:
    """Bytes of one part ("weight" or "weight_scale") of a converted matrix."""
    weight = component.read(key)
    tensor = fp8_scale(weight) if part == "weight_scale" else quantize_fp8(weight).parts[part]
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _metadata(components: Sequence[Component], entries: Sequence[_TensorEntry]) -> dict[str, str]:
    """Metadata of the sources (the first component wins) and the list of fp8 layers."""
    layers = {
        e.name.removesuffix(".weight"): {"format": "float8_e4m3fn"}
        for e in entries
        if e.dtype == "F8_E4M3"
    }
    metadata: dict[str, str] = {}
    for component in reversed(components):
        metadata |= component.file.metadata
    return metadata | {METADATA: json.dumps({"format_version": "1.0", "layers": layers})}


def _encode_header(entries: Sequence[_TensorEntry], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        row = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (begin, end)}
        if entry.name in table:
            raise CheckpointError(
                f"tensor {entry.name} is in two of the components",
                "pass the components of one checkpoint",
            )
        table[entry.name] = row
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT)
