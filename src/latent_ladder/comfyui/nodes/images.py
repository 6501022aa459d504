"""Image and mask nodes: load, create, resize, crop, upscale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.node_defs.images import rtx_size
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.resize import Size, resize_frames
from latent_ladder.comfyui.runtime.values import Images, Mask, UpscalerFile, Value
from latent_ladder.errors import CheckpointError, MediaError
from latent_ladder.latents.shapes import Crop
from latent_ladder.media.image_files import open_image
from latent_ladder.media.image_input import compress_like_video
from latent_ladder.upscale.stream import load_upscaler, upscale_frames
from latent_ladder.upscale.tiles import TiledNetwork
from latent_ladder.upscale.upscale_plan import UpscalePlan, require_rtx

CHUNK_FRAMES = 8


# --- load and create ----------------------------------------------------------------------------


def load_image(ctx: NodeContext) -> list[Value]:
    """``LoadImage``: all frames of an image file, rotated by its EXIF tag, and its transparency.

    Transparent pixels keep their colour; the mask is 1 there. Without transparency the mask is
    64x64 zeros.
    """
    from PIL import ImageOps, ImageSequence

    path = ctx.engine.input_file(ctx.text("image"))
    frames: list[NDArray[np.uint8]] = []
    masks: list[Tensor] = []
    try:
        with open_image(path, all_frames=True) as opened:
            truncated = bool(opened.info.get("truncated"))
            for each in ImageSequence.Iterator(opened):
                frame = ImageOps.exif_transpose(each)
                if frames and (frame.height, frame.width) != frames[0].shape[:2]:
                    continue
                frames.append(_to_rgb(frame))
                masks.append(_to_transparency(frame))
    except MediaError as error:
        raise ctx.error(error.message, error.hint) from error
    if truncated:
        ctx.warn("truncated", f"{path.name} is truncated: its missing part is grey")
    masks = [mask for mask in masks if mask.shape == masks[0].shape]
    return [_to_images(frames), Mask(torch.stack(masks))]


def _to_images(frames: Sequence[NDArray[np.uint8]]) -> Images:
    """A stream of the frames (H, W, 3), converted to floating point one at a time."""
    height, width, _ = frames[0].shape

    def pixels() -> Iterator[Tensor]:
        for frame in frames:
            yield torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255

    return Images(len(frames), width, height, pixels, lambda: (f[None] for f in frames))


def _to_rgb(image: object) -> NDArray[np.uint8]:
    """Return a Pillow image as RGB (H, W, 3)."""
    from PIL.Image import Image

    if not isinstance(image, Image):
        raise TypeError("not a picture")
    if image.mode == "I":
        image = image.point(lambda value: value * (1 / 255))
    return np.array(image.convert("RGB"), np.uint8)


def _to_transparency(image: object) -> Tensor:
    from PIL.Image import Image

    if not isinstance(image, Image):
        raise TypeError("not a picture")
    if not image.has_transparency_data:
        return torch.zeros(64, 64)
    alpha = np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255
    return 1 - torch.from_numpy(alpha.copy())


def load_mask(ctx: NodeContext) -> list[Value]:
    """``LoadImageMask``: one channel of an image; alpha is inverted, and zeros if it is missing."""
    from PIL import ImageOps

    path, channel = ctx.engine.input_file(ctx.text("image")), ctx.text("channel")[0].upper()
    try:
        with open_image(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if channel == "A" and not image.has_transparency_data:
                return [Mask(torch.zeros(1, 64, 64))]
            plane = np.asarray(image.convert("RGBA").getchannel(channel), np.float32) / 255
    except MediaError as error:
        raise ctx.error(error.message, error.hint) from error
    values = torch.from_numpy(plane.copy())[None]
    return [Mask(1 - values if channel == "A" else values)]


def empty_image(ctx: NodeContext) -> list[Value]:
    """``EmptyImage``: images of one colour, 0xRRGGBB."""
    width, height, count = ctx.integer("width"), ctx.integer("height"), ctx.integer("batch_size")
    colour = ctx.integer("color")
    rgb = torch.tensor([(colour >> shift & 255) / 255 for shift in (16, 8, 0)])

    def pixels() -> Iterator[Tensor]:
        for first in range(0, count, CHUNK_FRAMES):
            n = min(CHUNK_FRAMES, count - first)
            yield rgb[None, :, None, None].expand(n, 3, height, width).clone()

    return [Images(count, width, height, pixels)]


def repeat_images(ctx: NodeContext) -> list[Value]:
    """``RepeatImageBatch``: the batch repeated a number of times."""
    images, times = ctx.get("image", Images), ctx.integer("amount")

    def pixels() -> Iterator[Tensor]:
        for _ in range(times):
            yield from images.pixels()

    return [replace(images, count=images.count * times, pixels=pixels, pixels_uint8=None)]


def image_from_batch(ctx: NodeContext) -> list[Value]:
    """``ImageFromBatch``: a range of frames, limited to those that exist."""
    images, first = ctx.get("image", Images), ctx.integer("batch_index")
    first = first + images.count if first < 0 else first
    first = min(max(first, 0), images.count - 1)
    count = min(ctx.integer("length"), images.count - first)

    def pixels() -> Iterator[Tensor]:
        position = 0
        for chunk in images.first(first + count).pixels():
            selected = chunk[max(first - position, 0) :]
            position += len(chunk)
            if len(selected):
                yield selected

    return [replace(images, count=count, pixels=pixels, pixels_uint8=None)]


# --- sizes --------------------------------------------------------------------------------------


def scale_image(ctx: NodeContext) -> list[Value]:
    """``ImageScale``: images resized; a side of 0 is computed from the other."""
    images = ctx.get("image", Images)
    width, height = ctx.integer("width"), ctx.integer("height")
    if not width and not height:
        return [images]
    if width == 0:
        width = max(1, round(images.width * height / images.height))
    elif height == 0:
        height = max(1, round(images.height * width / images.width))
    return [_resize(images, (width, height), ctx.text("upscale_method"), ctx.text("crop"))]


def scale_image_by(ctx: NodeContext) -> list[Value]:
    """``ImageScaleBy``: images resized by a factor."""
    images, factor = ctx.get("image", Images), ctx.number("scale_by")
    size = (round(images.width * factor), round(images.height * factor))
    return [_resize(images, size, ctx.text("upscale_method"))]


def _resize(images: Images, size: Size, method: str, crop: str = "disabled") -> Images:
    if size == (images.width, images.height):
        return images
    return images.map(lambda frames: resize_frames(frames, size, method, crop), size)


def resize_longer_edge(ctx: NodeContext) -> list[Value]:
    """``ResizeImagesByLongerEdge``: images resized by their longer side, with Lanczos."""
    images, longer = ctx.get("images", Images), ctx.integer("longer_edge")
    if images.width > images.height:
        size = (longer, int(images.height * (longer / images.width)))
    else:
        size = (int(images.width * (longer / images.height)), longer)
    return [_resize(images, size, "lanczos")]


def resize_node(ctx: NodeContext) -> list[Value]:
    """``ResizeImageMaskNode``: images or a mask, resized in one of several ways."""
    value = ctx.get("input", object)
    if isinstance(value, Mask):
        n, height, width = value.values.shape
        size, crop = _requested_size(ctx, (width, height))
        planes = value.values[:, None].expand(n, 3, height, width)
        resized = resize_frames(planes, size, ctx.text("scale_method"), crop)
        return [Mask(resized[:, 0].contiguous())]
    images = ctx.get("input", Images)
    size, crop = _requested_size(ctx, (images.width, images.height))
    return [_resize(images, size, ctx.text("scale_method"), crop)]


def _requested_size(ctx: NodeContext, size: Size) -> tuple[Size, str]:
    kind = ctx.text("resize_type")
    if kind not in RESIZE_TYPES:
        raise ctx.error(
            f"resize_type {kind} is not supported; supported: {', '.join(RESIZE_TYPES)}"
        )
    width, height, crop = RESIZE_TYPES[kind](ctx, size)
    return (max(width, 1), max(height, 1)), crop


ResizeTarget = tuple[int, int, str]
DISABLED = "disabled"


def _resize_to_dimensions(ctx: NodeContext, size: Size) -> ResizeTarget:
    width, height = ctx.integer("resize_type.width"), ctx.integer("resize_type.height")
    if width == height == 0:
        return (*size, DISABLED)
    if width == 0:
        width = round(size[0] * height / size[1])
    elif height == 0:
        height = round(size[1] * width / size[0])
    return width, height, ctx.text("resize_type.crop")


def _resize_by(ctx: NodeContext, size: Size) -> ResizeTarget:
    factor = ctx.number("resize_type.multiplier")
    return round(size[0] * factor), round(size[1] * factor), DISABLED


def _resize_longer(ctx: NodeContext, size: Size) -> ResizeTarget:
    return _resize_side(size, ctx.integer("resize_type.longer_size"), wide=size[0] > size[1])


def _resize_shorter(ctx: NodeContext, size: Size) -> ResizeTarget:
    return _resize_side(size, ctx.integer("resize_type.shorter_size"), wide=size[0] < size[1])


def _resize_side(size: Size, length: int, *, wide: bool) -> ResizeTarget:
    """Return the size with one side of a given length; ``wide``: that side is the width."""
    width, height = size
    if wide:
        return length, round(height / width * length), DISABLED
    return round(width / height * length), length, DISABLED


def _resize_width(ctx: NodeContext, size: Size) -> ResizeTarget:
    length = ctx.integer("resize_type.width")
    return _resize_side(size, length, wide=True) if length else (*size, DISABLED)


def _resize_height(ctx: NodeContext, size: Size) -> ResizeTarget:
    length = ctx.integer("resize_type.height")
    return _resize_side(size, length, wide=False) if length else (*size, DISABLED)


def _resize_megapixels(ctx: NodeContext, size: Size) -> ResizeTarget:
    total = int(ctx.number("resize_type.megapixels") * 1024 * 1024)
    factor = (total / (size[0] * size[1])) ** 0.5
    return round(size[0] * factor), round(size[1] * factor), DISABLED


def _resize_to_match(ctx: NodeContext, _: Size) -> ResizeTarget:
    like = ctx.get("resize_type.match", object)
    if isinstance(like, Mask):
        height, width = like.values.shape[1:]
    else:
        images = ctx.get("resize_type.match", Images)
        width, height = images.width, images.height
    return width, height, ctx.text("resize_type.crop")


def _resize_to_multiple(ctx: NodeContext, size: Size) -> ResizeTarget:
    multiple = ctx.integer("resize_type.multiple")
    return (
        size[0] // multiple * multiple or multiple,
        size[1] // multiple * multiple or multiple,
        "center",
    )


RESIZE_TYPES: Mapping[str, Callable[[NodeContext, Size], ResizeTarget]] = MappingProxyType(
    {
        "scale dimensions": _resize_to_dimensions,
        "scale by multiplier": _resize_by,
        "scale longer dimension": _resize_longer,
        "scale shorter dimension": _resize_shorter,
        "scale width": _resize_width,
        "scale height": _resize_height,
        "scale total pixels": _resize_megapixels,
        "match size": _resize_to_match,
        "scale to multiple": _resize_to_multiple,
    }
)


def crop_image(ctx: NodeContext) -> list[Value]:
    """``ImageCrop``: a rectangle of the images, limited to their size."""
    images = ctx.get("image", Images)
    x, y = min(ctx.integer("x"), images.width - 1), min(ctx.integer("y"), images.height - 1)
    right, below = x + ctx.integer("width"), y + ctx.integer("height")
    size = (min(right, images.width) - x, min(below, images.height) - y)
    return [images.map(lambda frames: frames[..., y:below, x:right], size)]


def resize_and_pad(ctx: NodeContext) -> list[Value]:
    """``ResizeAndPadImage``: images fitted into a size and padded with one colour."""
    images = ctx.get("image", Images)
    width, height = ctx.integer("target_width"), ctx.integer("target_height")
    factor = min(width / images.width, height / images.height)
    inner = (int(images.width * factor), int(images.height * factor))
    method, value = ctx.text("interpolation"), float(ctx.text("padding_color") == "white")
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    border = (left, width - inner[0] - left, top, height - inner[1] - top)

    def resize_and_pad_frames(frames: Tensor) -> Tensor:
        return F.pad(resize_frames(frames, inner, method), border, value=value)

    return [images.map(resize_and_pad_frames, (width, height))]


def get_image_size(ctx: NodeContext) -> list[Value]:
    """``GetImageSize``: width, height and number of frames, without decoding."""
    images = ctx.get("image", Images)
    return [images.width, images.height, images.count]


def get_image_size_and_count(ctx: NodeContext) -> list[Value]:
    """``GetImageSizeAndCount``: the images, their width, height and number."""
    return [ctx.get("image", Images), *get_image_size(ctx)]


# --- compress and upscale -----------------------------------------------------------------------


def preprocess(ctx: NodeContext) -> list[Value]:
    """``LTXVPreprocess``: frames compressed with H.264 at a crf; odd sides are cropped by one."""
    images, crf = ctx.get("image", Images), ctx.integer("img_compression")
    if crf == 0:
        return [images]

    size = (images.width // 2 * 2, images.height // 2 * 2)
    return [images.map(lambda frames: compress_frames(frames, crf), size)]


def compress_frames(frames: Tensor, crf: int) -> Tensor:
    """Return frames (n, 3, H, W) 0..1 after H.264 compression at ``crf``, each on its own."""
    # truncated to 8 bits, as ComfyUI does
    pixels = frames.permute(0, 2, 3, 1).mul(255).to(torch.uint8).cpu().numpy()
    compressed = np.stack([compress_like_video(frame, crf) for frame in pixels])
    return torch.from_numpy(compressed).permute(0, 3, 1, 2).float() / 255


def upscale_with_model(ctx: NodeContext) -> list[Value]:
    """``ImageUpscaleWithModel``: images upscaled by a model in tiles, a few frames at a time."""
    images, file = ctx.get("image", Images), ctx.get("upscale_model", UpscalerFile).component
    runtime = ctx.engine.runtime
    size = (images.width, images.height)
    plan = UpscalePlan(file.file.path.name, size, Crop(0, 0, *size), size, file)
    tiled = load_upscaler(plan, device=runtime.device, dtype=torch.float32)
    factor = tiled.network.scale if isinstance(tiled, TiledNetwork) else 1
    plan = replace(plan, target=(size[0] * factor, size[1] * factor))
    return [_upscale(ctx, images, plan, torch.float32)]


def _upscale(ctx: NodeContext, images: Images, plan: UpscalePlan, dtype: torch.dtype) -> Images:
    """Return the frames upscaled; the upscaler is loaded when they are read."""
    runtime = ctx.engine.runtime

    def pixels() -> Iterator[Tensor]:
        upscaler = load_upscaler(plan, device=runtime.device, dtype=dtype)
        chunks = (chunk.to(runtime.device) for chunk in images.pixels())
        return upscale_frames(chunks, plan, upscaler)

    def lower_memory() -> Images | None:
        source = images.lower_memory()
        return None if source is None else _upscale(ctx, source, plan, dtype)

    return Images(images.count, *plan.target, pixels, lower_memory=lower_memory)


def upscale_rtx(ctx: NodeContext) -> list[Value]:
    """``RTXVideoSuperResolution``: images upscaled by NVIDIA's SDK; sides are rounded to 8.

    ``quality`` is ignored: ULTRA for clean sources is used.
    """
    images = ctx.get("images", Images)
    if ctx.text("resize_type") == "target dimensions":
        target = rtx_size(ctx.integer("resize_type.width"), ctx.integer("resize_type.height"))
    else:
        factor = ctx.number("resize_type.scale")
        target = rtx_size(images.width * factor, images.height * factor)
    try:
        require_rtx()
    except CheckpointError as error:
        raise ctx.error(error.message, error.hint) from error
    if ctx.engine.runtime.device.type != "cuda":
        raise ctx.error("it needs an NVIDIA RTX GPU", "use ImageUpscaleWithModel or ImageScale")
    size = (images.width, images.height)
    plan = UpscalePlan("rtx", size, Crop(0, 0, *size), target)
    return [_upscale(ctx, images, plan, ctx.engine.runtime.dtype)]


def check_rtx(_: Node) -> str:
    """Return why RTX upscaling cannot run here."""
    try:
        require_rtx()
    except CheckpointError as error:
        return error.message
    return ""


# --- masks --------------------------------------------------------------------------------------

CHANNELS = MappingProxyType({"red": 0, "green": 1, "blue": 2})


def image_to_mask(ctx: NodeContext) -> list[Value]:
    """``ImageToMask``: one channel of all frames; images here have no alpha channel."""
    channel = ctx.text("channel")
    if channel not in CHANNELS:
        raise ctx.error("images have no alpha channel here", "use red, green or blue")
    chunks = [c[:, CHANNELS[channel]].float().cpu() for c in ctx.get("image", Images).pixels()]
    return [Mask(torch.cat(chunks))]


def mask_to_image(ctx: NodeContext) -> list[Value]:
    """``MaskToImage``: a mask as grey images."""
    values = ctx.get("mask", Mask).values
    return [Images.from_tensor(values[:, None].repeat(1, 3, 1, 1))]


def solid_mask(ctx: NodeContext) -> list[Value]:
    """``SolidMask``: a mask of one value."""
    size = (1, ctx.integer("height"), ctx.integer("width"))
    return [Mask(torch.full(size, ctx.number("value")))]


def invert_mask(ctx: NodeContext) -> list[Value]:
    """``InvertMask``: 1 minus the mask."""
    return [Mask(1 - ctx.get("mask", Mask).values)]


def threshold_mask(ctx: NodeContext) -> list[Value]:
    """``ThresholdMask``: 1 above a value, else 0."""
    return [Mask((ctx.get("mask", Mask).values > ctx.number("value")).float())]


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "LoadImage": NodeFunction(load_image),
        "LoadImageMask": NodeFunction(load_mask),
        "EmptyImage": NodeFunction(empty_image),
        "RepeatImageBatch": NodeFunction(repeat_images),
        "ImageFromBatch": NodeFunction(image_from_batch),
        "ImageScale": NodeFunction(scale_image),
        "ImageScaleBy": NodeFunction(scale_image_by),
        "ResizeImagesByLongerEdge": NodeFunction(resize_longer_edge),
        "ResizeImageMaskNode": NodeFunction(resize_node),
        "ImageCrop": NodeFunction(crop_image),
        "ResizeAndPadImage": NodeFunction(resize_and_pad),
        "GetImageSize": NodeFunction(get_image_size),
        "GetImageSizeAndCount": NodeFunction(get_image_size_and_count),
        "LTXVPreprocess": NodeFunction(preprocess, version=2),
        "ImageUpscaleWithModel": NodeFunction(upscale_with_model),
        "RTXVideoSuperResolution": NodeFunction(upscale_rtx, check=check_rtx, version=2),
        "ImageToMask": NodeFunction(image_to_mask),
        "MaskToImage": NodeFunction(mask_to_image),
        "SolidMask": NodeFunction(solid_mask),
        "InvertMask": NodeFunction(invert_mask),
        "ThresholdMask": NodeFunction(threshold_mask),
    }
)
