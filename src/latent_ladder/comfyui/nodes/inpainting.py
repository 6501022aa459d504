"""In- and outpainting nodes: dilate masks, fill with green, pad, and blend.

They behave as the mask and pyramid nodes of ComfyUI-LTXVideo and KJNodes. The Laplacian pyramid is
that of Burt and Adelson (1983) with a 5x5 binomial filter and bilinear resampling, as in kornia.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.resize import resize_frames
from latent_ladder.comfyui.runtime.values import Images, Mask, Value

GREEN = (102 / 255, 1.0, 0.0)
"""The colour of the area that the transformer fills."""
LEVELS = 7
LOW_RES_SIDE = 64
CHUNK_FRAMES = 8


def dilate_mask(ctx: NodeContext) -> list[Value]:
    """``LTXVDilateVideoMask``: a mask dilated in space and time, then thresholded."""
    mask_input = ctx.get_optional("mask", Mask)
    if mask_input is not None:
        mask = mask_input.values
    elif ctx.has("image_as_mask"):
        mask = ctx.get("image_as_mask", Images).to_tensor().mean(dim=1)
    else:
        raise ctx.error("neither mask nor image_as_mask is connected", "connect one of them")
    space, time = ctx.integer("spatial_radius"), ctx.integer("temporal_radius")
    if space:
        mask = F.max_pool2d(mask[:, None], 2 * space + 1, stride=1, padding=space)[:, 0]
    if time:
        count, height, width = mask.shape
        lines = mask.permute(1, 2, 0).reshape(-1, 1, count)
        lines = F.max_pool1d(lines, 2 * time + 1, stride=1, padding=time)
        mask = lines.reshape(height, width, count).permute(2, 0, 1)
    return [Mask((mask > 0.5).float())]


def fill_green(ctx: NodeContext) -> list[Value]:
    """``LTXVInpaintPreprocess``: images with green in the mask; one mask frame is used for all."""
    images, mask = ctx.get("images", Images), ctx.get("mask", Mask).values
    _check_same_size(ctx, images, mask)
    count = images.count if len(mask) == 1 else min(images.count, len(mask))
    colour = torch.tensor(GREEN)[None, :, None, None]

    def pixels() -> Iterator[Tensor]:
        position = 0
        for chunk in images.first(count).pixels():
            part = mask[:1] if len(mask) == 1 else mask[position : position + len(chunk)]
            position += len(chunk)
            weight = part[:, None].to(chunk.device)
            yield chunk * (1 - weight) + colour.to(chunk.device) * weight

    return [replace(images, count=count, pixels=pixels, pixels_uint8=None)]


def _check_same_size(ctx: NodeContext, images: Images, mask: Tensor) -> None:
    height, width = mask.shape[1:]
    if (width, height) != (images.width, images.height):
        raise ctx.error(
            f"the images are {images.width}x{images.height}, the mask is {width}x{height}",
            "resize one of them with ResizeImageMaskNode",
        )


def pad_for_outpainting(ctx: NodeContext) -> list[Value]:
    """``ImagePadForOutpaintTargetSize``: images padded with grey to a size, and the mask of it."""
    images = ctx.get("image", Images)
    width, height = ctx.integer("target_width"), ctx.integer("target_height")
    factor = min(width / images.width, height / images.height)
    inner = (images.width, images.height)
    if factor < 1:
        inner = (int(images.width * factor), int(images.height * factor))
    left, top = max(0, (width - inner[0]) // 2), max(0, (height - inner[1]) // 2)
    border = (left, max(0, width - inner[0] - left), top, max(0, height - inner[1] - top))
    method = ctx.text("upscale_method")

    def resize_and_pad_frames(frames: Tensor) -> Tensor:
        return F.pad(resize_frames(frames, inner, method), border, value=0.5)

    size = (inner[0] + border[0] + border[1], inner[1] + border[2] + border[3])
    mask_input = ctx.get_optional("mask", Mask)
    if mask_input is None:
        mask = F.pad(_feather(inner, border, ctx.integer("feathering"))[None], border, value=1.0)
    else:
        scaled = F.interpolate(mask_input.values[:, None], inner[::-1], mode="nearest")[:, 0]
        mask = 1 - F.pad(scaled, border)
    return [images.map(resize_and_pad_frames, size), Mask(mask)]


def _feather(size: tuple[int, int], border: tuple[int, int, int, int], width: int) -> Tensor:
    """Return a mask (H, W) that rises quadratically from 0 to 1 towards padded sides."""
    w, h = size
    if width <= 0 or 2 * width >= min(w, h):
        return torch.zeros(h, w)
    left, right, top, below = border
    far = float(max(w, h))
    columns, rows = torch.arange(w).float(), torch.arange(h).float()
    across = torch.minimum(
        columns if left else torch.full((w,), far), w - columns if right else torch.full((w,), far)
    )
    down = torch.minimum(
        rows if top else torch.full((h,), far), h - rows if below else torch.full((h,), far)
    )
    distance = torch.minimum(down[:, None], across[None])
    return ((width - distance) / width).clamp(0, 1).square()


def blend_images(ctx: NodeContext) -> list[Value]:
    """``LTXVLaplacianPyramidBlend``: ``image_a`` in the mask, blended seamlessly."""
    a, b, mask = (
        ctx.get("image_a", Images),
        ctx.get("image_b", Images),
        ctx.get("mask", Mask).values,
    )
    _check_same_size(ctx, a, mask)
    _check_same_size(ctx, b, mask)
    counts = (a.count, b.count, len(mask))
    if len(set(counts)) > 1 and not ctx.boolean("trim_to_shortest"):
        raise ctx.error(
            f"image_a, image_b and mask have {counts} frames", "switch trim_to_shortest on"
        )
    count = min(counts)
    dilated = _dilate_low_res(mask[:count, None], ctx.integer("mask_low_res_dilation"))
    device = ctx.engine.runtime.device

    def pixels() -> Iterator[Tensor]:
        position = 0
        for first, second in zip(_rechunk(a.first(count)), _rechunk(b.first(count)), strict=True):
            part = dilated[position : position + len(first)]
            position += len(first)
            yield blend_pyramids(first.to(device), second.to(device), part.to(device))

    return [replace(a, count=count, pixels=pixels, pixels_uint8=None)]


def _rechunk(images: Images) -> Iterator[Tensor]:
    """Return the frames in chunks of :data:`CHUNK_FRAMES`."""
    buffer: list[Tensor] = []
    for chunk in images.pixels():
        buffer += [frame.float() for frame in chunk]
        while len(buffer) >= CHUNK_FRAMES:
            yield torch.stack(buffer[:CHUNK_FRAMES])
            buffer = buffer[CHUNK_FRAMES:]
    if buffer:
        yield torch.stack(buffer)


def _dilate_low_res(mask: Tensor, radius: int) -> Tensor:
    """Return a mask (n, 1, H, W) dilated at a longer side of 64 pixels."""
    if radius <= 0:
        return mask
    height, width = mask.shape[-2:]
    scale = LOW_RES_SIDE / max(height, width)
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    low = mask if small == (height, width) else F.interpolate(mask, small, mode="bilinear")
    low = F.max_pool2d(low, 2 * radius + 1, stride=1, padding=radius)
    return F.interpolate(low, (height, width), mode="bilinear")


def blend_pyramids(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Blend images (n, 3, H, W) by a mask (n, 1, H, W), 1 for ``a``; clipped to 0..1."""
    height, width = a.shape[-2:]
    a, b, mask = (_pad_to_powers_of_two(t) for t in (a, b, mask))
    levels = min(LEVELS, int(math.log2(min(a.shape[-2:]))))
    weights = _gaussian_pyramid(mask, levels)
    details = [
        x * w + y * (1 - w)
        for x, y, w in zip(
            _laplacian_pyramid(a, levels), _laplacian_pyramid(b, levels), weights, strict=True
        )
    ]
    out = details[-1]
    for detail in details[-2::-1]:
        out = _upsample(out) + detail
    return out[..., :height, :width].clamp(0, 1)


def _pad_to_powers_of_two(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    right, below = (1 << (n - 1).bit_length() for n in (width, height))
    if (below, right) == (height, width):
        return images
    return F.pad(images, (0, right - width, 0, below - height), mode="reflect")


def _gaussian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    pyramid = [images]
    for _ in range(levels - 1):
        height, width = pyramid[-1].shape[-2:]
        pyramid.append(
            F.interpolate(_blur(pyramid[-1]), (height // 2, width // 2), mode="bilinear")
        )
    return pyramid


def _laplacian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    pyramid = _gaussian_pyramid(images, levels)
    differences = [larger - _upsample(smaller) for larger, smaller in pairwise(pyramid)]
    return [*differences, pyramid[-1]]


def _upsample(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return _blur(F.interpolate(images, (height * 2, width * 2), mode="bilinear"))


def _blur(images: Tensor) -> Tensor:
    """Apply a 5x5 binomial filter with reflection at the border."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16
    channels = images.shape[1]
    kernel = (line[:, None] * line).expand(channels, 1, 5, 5)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(padded, kernel, groups=channels)


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "LTXVDilateVideoMask": NodeFunction(dilate_mask),
        "LTXVInpaintPreprocess": NodeFunction(fill_green),
        "ImagePadForOutpaintTargetSize": NodeFunction(pad_for_outpainting),
        "LTXVLaplacianPyramidBlend": NodeFunction(blend_images),
    }
)
