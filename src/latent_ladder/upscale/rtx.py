"""NVIDIA RTX Video Super Resolution through NVIDIA's own package, frame by frame.

The package (``nvidia-vfx``, imported as ``nvvfx``) is proprietary, for RTX cards, and never part of
this one. HIGHBITRATE is its family for clean sources, which generated frames are; it takes and
gives CUDA float32 (3, H, W), 0..1, and reuses its output's memory.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from latent_ladder.errors import MediaError
from latent_ladder.upscale.plan import require_rtx

QUALITY = "HIGHBITRATE_ULTRA"
MOST = 4.0
"""The largest factor in one go; what is left is done by Lanczos."""


class RtxUpscaler:
    """(n, 3, H, W) 0..1 on a CUDA device -> the target size, or four times the source's."""

    def __init__(
        self, source: tuple[int, int], target: tuple[int, int], device: torch.device
    ) -> None:
        if device.type != "cuda":
            raise MediaError(
                f"rtx needs an NVIDIA RTX card, the frames are on {device.type}",
                "use lanczos, or --device cuda",
            )
        require_rtx()
        nvvfx: Any = importlib.import_module("nvvfx")
        share = min(1.0, MOST * source[0] / target[0], MOST * source[1] / target[1])
        effect = nvvfx.VideoSuperRes(
            quality=getattr(nvvfx.QualityLevel, QUALITY), device=device.index or 0
        )
        effect.output_width, effect.output_height = (round(n * share) for n in target)
        effect.load()
        self._effect = effect

    def __call__(self, frames: Tensor) -> Tensor:
        """All frames, one after the other."""
        done = []
        for frame in frames:
            result = self._effect.run(frame.float().contiguous())
            done.append(torch.utils.dlpack.from_dlpack(result.image).clone())
        return torch.stack(done)

    def close(self) -> None:
        """Release the card."""
        self._effect.close()
