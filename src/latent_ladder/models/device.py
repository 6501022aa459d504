"""Device and dtype of the networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latent_ladder.errors import RequestError

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Runtime:
    """Device, and the dtype that networks compute in (audio networks always use float32)."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}"


def choose_runtime(device: str = "auto") -> Runtime:
    """Choose the best available device ("auto"), or check that ``device`` is available.

    The dtype is bfloat16 on CUDA and Apple GPUs, as the family was trained, and float32 on the
    CPU, where most machines only emulate bfloat16. Raises :class:`RequestError` for an unknown or
    unavailable device.
    """
    if device == "auto":
        device = next((d for d in ("cuda", "mps") if _is_available(d)), "cpu")
    kind = device.split(":", maxsplit=1)[0]
    if kind not in DEVICES[1:]:
        raise RequestError(f"unknown device {device}", f"use --device {' or '.join(DEVICES)}")
    if not _is_available(kind):
        raise RequestError(
            f"device {device} is not available in this installation of PyTorch",
            "use --device auto, or install PyTorch with support for your GPU",
        )
    return Runtime(torch.device(device), torch.float32 if kind == "cpu" else torch.bfloat16)


def _is_available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    return True
