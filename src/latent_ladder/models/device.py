"""Device and dtype of the networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latent_ladder.models.accelerator import KINDS, count, device_name, has_bf16, has_streams
from latent_ladder.models.device_names import missing_device, parse_device


@dataclass(frozen=True)
class Runtime:
    """Device, and the dtype that networks compute in (audio networks always use float32)."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}"


def choose_runtime(device: str = "auto") -> Runtime:
    """Choose the best available device ("auto"), or check that ``device`` is available.

    Raises :class:`RequestError` for an unknown or unavailable device.
    """
    name = parse_device(device)
    if name.kind == "auto":
        name = parse_device(next((kind for kind in KINDS if count(kind)), "cpu"))
    available = count(name.kind)
    if (name.number or 0) >= available:
        raise missing_device(name, available)
    chosen = torch.device(name.kind)
    if has_streams(chosen):  # with its number, so that it equals the device of its tensors
        chosen = torch.device(name.kind, name.number or 0)
    return Runtime(chosen, compute_dtype(chosen))


def compute_dtype(device: torch.device) -> torch.dtype:
    """Dtype of the networks: bfloat16 as the family was trained, where the device computes in it.

    Otherwise float32: most CPUs and NVIDIA GPUs before Ampere only emulate bfloat16, and the range
    of float16 is too small for the activations of the transformer.
    """
    return torch.bfloat16 if has_bf16(device) else torch.float32


def dtype_note(runtime: Runtime) -> str | None:
    """Sentence about a GPU that computes in float32, ``None`` for other devices."""
    if not has_streams(runtime.device) or runtime.dtype is not torch.float32:
        return None
    return (
        f"{device_name(runtime.device)} has no bfloat16: networks compute in float32, which takes "
        "several times the time and twice the memory of a GPU from Ampere (RTX 30) on"
    )
