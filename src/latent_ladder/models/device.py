"""Where networks run and in which precision they compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latent_ladder.errors import RequestError

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Runtime:
    """A device and the dtype that networks compute in (audio always computes in float32)."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}"


def choose_runtime(device: str = "auto") -> Runtime:
    """The best device there is, or the one asked for.

    bfloat16 on CUDA and Apple GPUs, as the family was trained; float32 on the CPU, where bfloat16
    is emulated on most machines. Raises :class:`RequestError` for a device that is not there.
    """
    if device == "auto":
        device = next((d for d in ("cuda", "mps") if _available(d)), "cpu")
    kind = device.split(":", maxsplit=1)[0]
    if kind not in DEVICES[1:]:
        raise RequestError(f"device {device} is unknown", f"use one of {', '.join(DEVICES)}")
    if not _available(kind):
        raise RequestError(
            f"device {device} is not available in this installation of PyTorch",
            "use --device auto, or install a PyTorch build for your GPU",
        )
    return Runtime(torch.device(device), torch.float32 if kind == "cpu" else torch.bfloat16)


def _available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    return True
