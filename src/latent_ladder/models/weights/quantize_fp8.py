"""Weights to fp8: while loading, or into a checkpoint file that ComfyUI reads.

Each matrix gets one scale, its greatest number over fp8's greatest, so that nothing is clamped
and small weights keep their digits. Only the matrices of the video stream's attention and
feed-forward and of the attention between the streams take part: they hold four fifths of the
weights; gates, norms, modulation and the sound's own layers keep what they have.
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
from latent_ladder.models.weights.loading import Reader
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

FP8_MAX = 448.0
ALIGNMENT = 8

_FP8_WEIGHT = re.compile(
    r"transformer_blocks\.\d+\."
    r"(?:(?:attn1|attn2|audio_to_video_attn|video_to_audio_attn)\.to_(?:q|k|v|out\.0)"
    r"|ff\.net\.(?:0\.proj|2))\.weight"
)


def is_fp8_weight(name: str) -> bool:
    """Whether a transformer's tensor is converted to fp8."""
    return _FP8_WEIGHT.fullmatch(name) is not None


@torch.no_grad()
def quantize_fp8(weight: Tensor) -> QuantizedTensor:
    """A matrix (out, in) of floats as e4m3 with one float32 scale, on its own device."""
    scale = fp8_scale(weight)
    stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    for rows in _chunks(weight):
        numbers = (weight[rows].float() / scale).clamp_(-FP8_MAX, FP8_MAX)
        stored[rows] = numbers.to(torch.float8_e4m3fn)
    parts = {"weight": stored, "weight_scale": scale}
    return QuantizedTensor("fp8_e4m3", tuple(weight.shape), parts)


def fp8_scale(weight: Tensor) -> Tensor:
    """The greatest magnitude over fp8's greatest, float32; 1 for zeros, which nothing divides."""
    # By chunks: `abs` of the whole would be a second copy of it.
    greatest = torch.stack([weight[rows].abs().amax() for rows in _chunks(weight)]).amax().float()
    return torch.where(greatest > 0, greatest / FP8_MAX, torch.ones_like(greatest))


@dataclass(frozen=True)
class Fp8Reader(Reader):
    """Reads a matrix of floats as fp8, converted on ``device``; a quantised one as it is."""

    device: torch.device | str

    def __call__(self) -> Tensor | QuantizedTensor:
        found = super().__call__()
        return found if isinstance(found, QuantizedTensor) else quantize_fp8(found.to(self.device))


def _chunks(weight: Tensor) -> Iterator[slice]:
    step = max(1, CHUNK_WEIGHTS.get(weight.device.type, CHUNK_WEIGHTS["cuda"]) // weight.shape[1])
    return (slice(start, start + step) for start in range(0, len(weight), step))


# --- a checkpoint file ----------------------------------------------------------------------------

METADATA = "_quantization_metadata"


class _Entry(NamedTuple):
    """One tensor to be written: its safetensors type, shape, and bytes when they are wanted."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], bytes]

    @property
    def nbytes(self) -> int:
        return TensorInfo(self.shape, self.dtype).nbytes


def write_fp8_checkpoint(components: Sequence[Component], path: Path) -> None:
    """Write the components, their transformers' big matrices as scaled fp8, to a safetensors file.

    Names are those of the source; beside each converted ``<layer>.weight`` lies a float32
    ``<layer>.weight_scale``, and ``_quantization_metadata`` in the header lists the layers, as
    ComfyUI expects. Holds one tensor at a time in memory; the file appears when it is complete.
    Raises :class:`UnsupportedQuantization` for sources that are quantised already.
    """
    entries = [entry for component in components for entry in _entries(component)]
    # Wide types first: then every tensor lies aligned.
    entries.sort(key=lambda e: (-TensorInfo((1,), e.dtype).nbytes, e.name))
    header = _header(entries, _metadata(components, entries))
    started = path.with_name(f"{path.name}.partial")
    try:
        with started.open("wb") as opened:
            opened.write(len(header).to_bytes(8, "little") + header)
            for entry in entries:
                opened.write(entry.data())
        started.replace(path)
    finally:
        started.unlink(missing_ok=True)


def _entries(component: Component) -> Iterator[_Entry]:
    for key, name in component.names.items():
        if component.stored(key).format in FORMATS:
            raise UnsupportedQuantization(
                f"{component.file.path.name}: {name} is quantised already "
                f"({component.stored(key).format}), expected a file of bf16, f16 or f32",
                "start from the bf16 checkpoint: a second rounding costs quality for nothing",
            )
        info = component.file.tensors[name]
        if component.role != "transformer" or not is_fp8_weight(key):
            yield _Entry(name, info.dtype, info.shape, partial(component.file.read_bytes, name))
            continue
        yield _Entry(name, "F8_E4M3", info.shape, partial(_part, component, key, "weight"))
        scale = f"{name.removesuffix('.weight')}.weight_scale"
        yield _Entry(scale, "F32", (), partial(_part, component, key, "weight_scale"))


def _part(component: Component, key: str, part: str) -> bytes:
    """The bytes of one part of a converted matrix."""
    weight = component.read(key)
    tensor = fp8_scale(weight) if part == "weight_scale" else quantize_fp8(weight).parts[part]
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _metadata(components: Sequence[Component], entries: Sequence[_Entry]) -> dict[str, str]:
    """The sources' own metadata, the first component's first, and the list of fp8 layers."""
    layers = {
        e.name.removesuffix(".weight"): {"format": "float8_e4m3fn"}
        for e in entries
        if e.dtype == "F8_E4M3"
    }
    found: dict[str, str] = {}
    for component in reversed(components):
        found |= component.file.metadata
    return found | {METADATA: json.dumps({"format_version": "1.0", "layers": layers})}


def _header(entries: Sequence[_Entry], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        row = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (begin, end)}
        if entry.name in table:
            raise CheckpointError(
                f"tensor {entry.name} is in two of the components",
                "give components of one checkpoint",
            )
        table[entry.name] = row
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT)
