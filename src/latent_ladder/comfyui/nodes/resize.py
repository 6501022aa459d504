"""ComfyUI's five resize methods.

``lanczos`` uses Pillow with 8 bits; the others are torch's without antialiasing, ``area`` is the
mean. The crop ``center`` first crops to the aspect ratio of the target.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.media.image_resize import centre_margins

Size = tuple[int, int]
"""(width, height)."""


def resize_frames(frames: Tensor, size: Size, method: str, crop: str = "disabled") -> Tensor:
    """Resize frames (n, C, H, W) to (n, C, height, width); ``crop``: ``disabled`` or ``center``."""
    if crop == "center":
        frames = crop_center(frames, size)
    width, height = size
    if frames.shape[-2:] == (height, width):
        return frames
    if method == "lanczos":
        return _lanczos(frames, size)
    return F.interpolate(frames.float(), (height, width), mode=method)


def crop_center(frames: Tensor, size: Size) -> Tensor:
    """Return the central part of the frames with the aspect ratio of ``size``."""
    height, width = frames.shape[-2:]
    x, y = centre_margins((width, height), size)
    return frames[..., y : height - y, x : width - x]


def _lanczos(frames: Tensor, size: Size) -> Tensor:
    from PIL import Image

    resized = []
    for frame in frames.float().cpu():
        planes = frame.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        image = np.ascontiguousarray(planes.transpose(1, 2, 0))
        pixels = image[..., 0] if image.shape[2] == 1 else image
        small = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        values = np.asarray(small, np.float32) / 255
        values = values[..., None] if values.ndim == 2 else values
        resized.append(torch.from_numpy(values.transpose(2, 0, 1).copy()))
    return torch.stack(resized).to(frames.device)
