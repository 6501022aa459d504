"""Text conditioning of the transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Text contexts of one prompt: ``video`` (1, L, Dv) and ``audio`` (1, L, Da)."""

    video: Tensor
    audio: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """Move both contexts to ``device`` and, if given, convert them to ``dtype``."""
        return Conditioning(self.video.to(device, dtype), self.audio.to(device, dtype))
