"""NVIDIA RTX Video Super Resolution through NVIDIA's own package, frame by frame.

The package (``nvidia-vfx``, imported as ``nvvfx``) is proprietary, needs an RTX card and is not
part of this project. Its HIGHBITRATE quality levels are for clean sources such as generated frames.
It maps CUDA float32 (3, H, W) in 0..1 to a larger frame and reuses the memory of its output.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from latent_ladder.errors import MediaError
from latent_ladder.upscale.upscale_plan import require_rtx

QUALITY = "HIGHBITRATE_ULTRA"
MAX_FACTOR = 4.0
"""Largest factor of the network; Lanczos does the rest."""


class RtxUpscaler:
    """Upscaler of frames (n, 3, H, W) in 0..1 on a CUDA device, by at most :data:`MAX_FACTOR`.

    ``source`` and ``target`` are (width, height). Raises :class:`MediaError` on another device,
    :class:`CheckpointNotFound` without NVIDIA's package.
    """

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
        share = min(1.0, MAX_FACTOR * source[0] / target[0], MAX_FACTOR * source[1] / target[1])
        effect = nvvfx.VideoSuperRes(
            quality=getattr(nvvfx.QualityLevel, QUALITY), device=device.index or 0
        )
        effect.output_width, effect.output_height = (round(n * share) for n in target)
        effect.load()
        self._effect = effect

    def __call__(self, frames: Tensor) -> Tensor:
        """The upscaled frames; they are processed one by one."""
        done = []
        for frame in frames:
            result = self._effect.run(frame.float().contiguous())
            done.append(torch.utils.dlpack.from_dlpack(result.image).clone())
        return torch.stack(done)

    def close(self) -> None:
        """Free the GPU memory of the effect."""
        self._effect.close()
