"""Ways to fit an image to a canvas: with antialiasing, or as the official pipelines or ComfyUI do.

All are bilinear. Only ``antialiased`` averages the pixels of an image that shrinks; the two others
read the nearest four, as the programs do that they follow, and do not round the result to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""(width, height)."""
Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""Pixels (H, W, 3), 0 to 255."""


def fit_image(
    pixels: Pixels, canvas: Size, window: Size, fit: str = "cover", resize: str = "antialiased"
) -> Pixels:
    """An image (H, W, 3) resized to the (width, height) of ``canvas``, centred, aspect ratio kept.

    ``fit="cover"`` fills the canvas and crops the rest. ``fit="letterbox"`` shows the whole image
    inside ``window``, the centre of the canvas that the clip shows, with black around it; the
    official pipelines and ComfyUI only crop.
    """
    if fit == "cover":
        return COVERS[resize](pixels, canvas)
    height, width, _ = pixels.shape
    scale = min(window[0] / width, window[1] / height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    inside = _antialiased(pixels, size) if resize == "antialiased" else _bilinear(pixels, size)
    out = np.zeros((canvas[1], canvas[0], 3), inside.dtype)
    left, top = (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2
    out[top : top + size[1], left : left + size[0]] = inside
    return cast(Pixels, out)


def centre_margins(size: Size, target: Size) -> Size:
    """Columns and rows that ComfyUI cuts off at each side to reach the shape of ``target``."""
    (width, height), old, new = size, size[0] / size[1], target[0] / target[1]
    x = round((width - width * (new / old)) / 2) if old > new else 0
    y = round((height - height * (old / new)) / 2) if old < new else 0
    return x, y


def _cover_antialiased(pixels: Pixels, canvas: Size) -> Pixels:
    height, width, _ = pixels.shape
    scale = max(canvas[0] / width, canvas[1] / height)
    # rounding must not leave a gap
    size = (max(round(width * scale), canvas[0]), max(round(height * scale), canvas[1]))
    return _centre(_antialiased(pixels, size), canvas)


def _cover_ltx(pixels: Pixels, canvas: Size) -> Pixels:
    """Resize to cover, rounded up, then crop. Source: LTX-2 ``resize_and_center_crop``."""
    height, width, _ = pixels.shape
    scale = max(canvas[1] / height, canvas[0] / width)
    size = (math.ceil(width * scale), math.ceil(height * scale))
    return _centre(_bilinear(pixels, size), canvas)


def _cover_comfyui(pixels: Pixels, canvas: Size) -> Pixels:
    """Crop to the shape of the canvas, then resize. Source: ComfyUI ``common_upscale``."""
    height, width, _ = pixels.shape
    x, y = centre_margins((width, height), canvas)
    return _bilinear(pixels[y : height - y, x : width - x], canvas)


COVERS: Mapping[str, Callable[[Pixels, Size], Pixels]] = {
    "antialiased": _cover_antialiased,
    "comfyui": _cover_comfyui,
    "ltx": _cover_ltx,
}
"""Ways in which an image covers a canvas, by name."""


def _centre(pixels: Pixels, canvas: Size) -> Pixels:
    height, width, _ = pixels.shape
    left, top = (width - canvas[0]) // 2, (height - canvas[1]) // 2
    return pixels[top : top + canvas[1], left : left + canvas[0]]


def _antialiased(pixels: Pixels, size: Size) -> Pixels:
    from PIL import Image

    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if pixels.dtype == np.float32:
        return _bilinear(pixels, size, antialias=True)
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    return np.array(resized, np.uint8)


def _bilinear(pixels: Pixels, size: Size, *, antialias: bool = False) -> NDArray[np.float32]:
    """Bilinear interpolation as float32 from 0 to 255."""
    import torch
    from torch.nn import functional as F

    planes = torch.from_numpy(np.array(pixels, np.float32)).permute(2, 0, 1)[None]
    if (pixels.shape[1], pixels.shape[0]) != size:
        planes = F.interpolate(planes, (size[1], size[0]), mode="bilinear", antialias=antialias)
    resized: NDArray[np.float32] = planes[0].permute(1, 2, 0).contiguous().numpy()
    return resized
