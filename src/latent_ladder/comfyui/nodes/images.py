"""Pictures and masks: loaded, made, resized, cut, counted, enlarged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.nodes.node_context import Ask, Meaning
from latent_ladder.comfyui.nodes.resize import Size, resized
from latent_ladder.comfyui.runtime.values import Images, Mask, UpscalerFile, Value
from latent_ladder.errors import CheckpointError
from latent_ladder.latents.shapes import Crop
from latent_ladder.media.image_input import like_video
from latent_ladder.upscale.plan import UpscalePlan, require_rtx
from latent_ladder.upscale.stream import load_upscaler, upscaled
from latent_ladder.upscale.tiles import TiledNetwork

CHUNK = 8


# --- loaded and made ----------------------------------------------------------------------------


def load_image(ask: Ask) -> list[Value]:
    """``LoadImage``: upright, every frame of an animation; MASK is 1 where it is transparent.

    Transparent parts keep the colour that the file has there. Without transparency the mask is
    64x64 zeros.
    """
    from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

    path = ask.engine.input_file(ask.text("image"))
    frames, masks = [], []
    try:
        with Image.open(path) as opened:
            for each in ImageSequence.Iterator(opened):
                frame = ImageOps.exif_transpose(each)
                frames.append(_colours(frame))
                masks.append(_transparency(frame))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ask.error(f"{path.name} cannot be read as a picture: {error}") from error
    kept = [frame for frame in frames if frame.shape == frames[0].shape]
    mask = [m for m in masks if m.shape == masks[0].shape]
    return [Images.of(torch.stack(kept)), Mask(torch.stack(mask))]


def _colours(image: object) -> Tensor:
    """(3, H, W), 0..1."""
    from PIL.Image import Image

    if not isinstance(image, Image):
        raise TypeError("not a picture")
    if image.mode == "I":
        image = image.point(lambda value: value * (1 / 255))
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _transparency(image: object) -> Tensor:
    from PIL.Image import Image

    if not isinstance(image, Image):
        raise TypeError("not a picture")
    if not image.has_transparency_data:
        return torch.zeros(64, 64)
    alpha = np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255
    return 1 - torch.from_numpy(alpha.copy())


def load_mask(ask: Ask) -> list[Value]:
    """``LoadImageMask``: one channel; that of alpha is turned round, 1 where it is missing too."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    path, channel = ask.engine.input_file(ask.text("image")), ask.text("channel")[0].upper()
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if channel == "A" and not image.has_transparency_data:
                return [Mask(torch.zeros(1, 64, 64))]
            plane = np.asarray(image.convert("RGBA").getchannel(channel), np.float32) / 255
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ask.error(f"{path.name} cannot be read as a picture: {error}") from error
    values = torch.from_numpy(plane.copy())[None]
    return [Mask(1 - values if channel == "A" else values)]


def empty_image(ask: Ask) -> list[Value]:
    """``EmptyImage``: of one colour, 0xRRGGBB."""
    width, height, count = ask.whole("width"), ask.whole("height"), ask.whole("batch_size")
    colour = ask.whole("color")
    rgb = torch.tensor([(colour >> shift & 255) / 255 for shift in (16, 8, 0)])

    def pixels() -> Iterator[Tensor]:
        for first in range(0, count, CHUNK):
            n = min(CHUNK, count - first)
            yield rgb[None, :, None, None].expand(n, 3, height, width).clone()

    return [Images(count, width, height, pixels)]


def repeated(ask: Ask) -> list[Value]:
    """``RepeatImageBatch``: the whole batch, again and again."""
    images, times = ask.get("image", Images), ask.whole("amount")

    def pixels() -> Iterator[Tensor]:
        for _ in range(times):
            yield from images.pixels()

    return [replace(images, count=images.count * times, pixels=pixels, integers=None)]


def from_batch(ask: Ask) -> list[Value]:
    """``ImageFromBatch``: some frames; beyond the end there are none."""
    images, first = ask.get("image", Images), ask.whole("batch_index")
    first = first + images.count if first < 0 else first
    first = min(max(first, 0), images.count - 1)
    count = min(ask.whole("length"), images.count - first)

    def pixels() -> Iterator[Tensor]:
        at = 0
        for chunk in images.first(first + count).pixels():
            kept = chunk[max(first - at, 0) :]
            at += len(chunk)
            if len(kept):
                yield kept

    return [replace(images, count=count, pixels=pixels, integers=None)]


# --- sizes --------------------------------------------------------------------------------------


def scale(ask: Ask) -> list[Value]:
    """``ImageScale``: a side of 0 follows from the other."""
    images = ask.get("image", Images)
    width, height = ask.whole("width"), ask.whole("height")
    if not width and not height:
        return [images]
    if width == 0:
        width = max(1, round(images.width * height / images.height))
    elif height == 0:
        height = max(1, round(images.height * width / images.width))
    return [_resize(images, (width, height), ask.text("upscale_method"), ask.text("crop"))]


def scale_by(ask: Ask) -> list[Value]:
    """``ImageScaleBy``."""
    images, factor = ask.get("image", Images), ask.number("scale_by")
    size = (round(images.width * factor), round(images.height * factor))
    return [_resize(images, size, ask.text("upscale_method"))]


def _resize(images: Images, size: Size, method: str, crop: str = "disabled") -> Images:
    if size == (images.width, images.height):
        return images
    return images.mapped(lambda frames: resized(frames, size, method, crop), size)


def longer_edge(ask: Ask) -> list[Value]:
    """``ResizeImagesByLongerEdge``: by Pillow's Lanczos."""
    images, wanted = ask.get("images", Images), ask.whole("longer_edge")
    if images.width > images.height:
        size = (wanted, int(images.height * (wanted / images.width)))
    else:
        size = (int(images.width * (wanted / images.height)), wanted)
    return [_resize(images, size, "lanczos")]


def resize_node(ask: Ask) -> list[Value]:
    """``ResizeImageMaskNode``, of pictures or of a mask."""
    value = ask.get("input", object)
    if isinstance(value, Mask):
        n, height, width = value.values.shape
        shape = (width, height)
        size, crop = _wanted(ask, shape)
        planes = value.values[:, None].expand(n, 3, height, width)
        done = resized(planes, size, ask.text("scale_method"), crop)
        return [Mask(done[:, 0].contiguous())]
    images = ask.get("input", Images)
    size, crop = _wanted(ask, (images.width, images.height))
    return [_resize(images, size, ask.text("scale_method"), crop)]


def _wanted(ask: Ask, have: Size) -> tuple[Size, str]:
    kind = ask.text("resize_type")
    if kind not in RESIZES:
        raise ask.error(f"resize_type {kind} is not known here; known: {', '.join(RESIZES)}")
    width, height, crop = RESIZES[kind](ask, have)
    return (max(width, 1), max(height, 1)), crop


Wanted = tuple[int, int, str]
DISABLED = "disabled"


def _dimensions(ask: Ask, have: Size) -> Wanted:
    width, height = ask.whole("resize_type.width"), ask.whole("resize_type.height")
    if width == height == 0:
        return (*have, DISABLED)
    if width == 0:
        width = round(have[0] * height / have[1])
    elif height == 0:
        height = round(have[1] * width / have[0])
    return width, height, ask.text("resize_type.crop")


def _multiplied(ask: Ask, have: Size) -> Wanted:
    factor = ask.number("resize_type.multiplier")
    return round(have[0] * factor), round(have[1] * factor), DISABLED


def _longer(ask: Ask, have: Size) -> Wanted:
    return _side_to(have, ask.whole("resize_type.longer_size"), wide=have[0] > have[1])


def _shorter(ask: Ask, have: Size) -> Wanted:
    return _side_to(have, ask.whole("resize_type.shorter_size"), wide=have[0] < have[1])


def _side_to(have: Size, wanted: int, *, wide: bool) -> Wanted:
    """One side gets a length, the other follows; ``wide``: it is the width."""
    width, height = have
    if wide:
        return wanted, round(height / width * wanted), DISABLED
    return round(width / height * wanted), wanted, DISABLED


def _to_width(ask: Ask, have: Size) -> Wanted:
    wanted = ask.whole("resize_type.width")
    return _side_to(have, wanted, wide=True) if wanted else (*have, DISABLED)


def _to_height(ask: Ask, have: Size) -> Wanted:
    wanted = ask.whole("resize_type.height")
    return _side_to(have, wanted, wide=False) if wanted else (*have, DISABLED)


def _pixels(ask: Ask, have: Size) -> Wanted:
    total = int(ask.number("resize_type.megapixels") * 1024 * 1024)
    factor = (total / (have[0] * have[1])) ** 0.5
    return round(have[0] * factor), round(have[1] * factor), DISABLED


def _matched(ask: Ask, _: Size) -> Wanted:
    like = ask.get("resize_type.match", object)
    if isinstance(like, Mask):
        height, width = like.values.shape[1:]
    else:
        images = ask.get("resize_type.match", Images)
        width, height = images.width, images.height
    return width, height, ask.text("resize_type.crop")


def _to_multiple(ask: Ask, have: Size) -> Wanted:
    unit = ask.whole("resize_type.multiple")
    return have[0] // unit * unit or unit, have[1] // unit * unit or unit, "center"


RESIZES: Mapping[str, Callable[[Ask, Size], Wanted]] = MappingProxyType(
    {
        "scale dimensions": _dimensions,
        "scale by multiplier": _multiplied,
        "scale longer dimension": _longer,
        "scale shorter dimension": _shorter,
        "scale width": _to_width,
        "scale height": _to_height,
        "scale total pixels": _pixels,
        "match size": _matched,
        "scale to multiple": _to_multiple,
    }
)


def crop(ask: Ask) -> list[Value]:
    """``ImageCrop``: a window, moved and cut so that it lies inside."""
    images = ask.get("image", Images)
    x, y = min(ask.whole("x"), images.width - 1), min(ask.whole("y"), images.height - 1)
    right, below = x + ask.whole("width"), y + ask.whole("height")
    size = (min(right, images.width) - x, min(below, images.height) - y)
    return [images.mapped(lambda frames: frames[..., y:below, x:right], size)]


def resize_and_pad(ask: Ask) -> list[Value]:
    """``ResizeAndPadImage``: fitted inside, the rest in one colour."""
    images = ask.get("image", Images)
    width, height = ask.whole("target_width"), ask.whole("target_height")
    factor = min(width / images.width, height / images.height)
    inner = (int(images.width * factor), int(images.height * factor))
    method, value = ask.text("interpolation"), float(ask.text("padding_color") == "white")
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    border = (left, width - inner[0] - left, top, height - inner[1] - top)

    def padded(frames: Tensor) -> Tensor:
        return F.pad(resized(frames, inner, method), border, value=value)

    return [images.mapped(padded, (width, height))]


def image_size(ask: Ask) -> list[Value]:
    """``GetImageSize``: width, height, frames; nothing is decoded for it."""
    images = ask.get("image", Images)
    return [images.width, images.height, images.count]


def image_size_and_count(ask: Ask) -> list[Value]:
    """``GetImageSizeAndCount``."""
    return [ask.get("image", Images), *image_size(ask)]


# --- changed ------------------------------------------------------------------------------------


def preprocess(ask: Ask) -> list[Value]:
    """``LTXVPreprocess``: each frame through H.264 at a crf and back; odd sides lose a line."""
    images, crf = ask.get("image", Images), ask.whole("img_compression")
    if crf == 0:
        return [images]

    size = (images.width // 2 * 2, images.height // 2 * 2)
    return [images.mapped(lambda frames: compressed(frames, crf), size)]


def compressed(frames: Tensor, crf: int) -> Tensor:
    """(n, 3, H, W) 0..1 after H.264 at ``crf``, frame by frame."""
    whole = frames.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    done = np.stack([like_video(frame, crf) for frame in whole])
    return torch.from_numpy(done).permute(0, 3, 1, 2).float() / 255


def with_model(ask: Ask) -> list[Value]:
    """``ImageUpscaleWithModel``: by the model's own factor, in tiles, a few frames at a time."""
    images, file = ask.get("image", Images), ask.get("upscale_model", UpscalerFile).component
    runtime = ask.engine.runtime
    have = (images.width, images.height)
    start = UpscalePlan(file.file.path.name, have, Crop(0, 0, *have), have, file)
    tiled = load_upscaler(start, device=runtime.device, dtype=torch.float32)
    factor = tiled.network.scale if isinstance(tiled, TiledNetwork) else 1
    size = (have[0] * factor, have[1] * factor)
    plan = replace(start, target=size)
    return [_enlarged(ask, images, plan, torch.float32)]


def _enlarged(ask: Ask, images: Images, plan: UpscalePlan, dtype: torch.dtype) -> Images:
    """The frames through an upscaler that is loaded when somebody goes through them."""
    runtime = ask.engine.runtime

    def pixels() -> Iterator[Tensor]:
        enlarge = load_upscaler(plan, device=runtime.device, dtype=dtype)
        chunks = (chunk.to(runtime.device) for chunk in images.pixels())
        return upscaled(chunks, plan, enlarge)

    def smaller() -> Images | None:
        less = images.smaller()
        return None if less is None else _enlarged(ask, less, plan, dtype)

    return Images(images.count, *plan.target, pixels, smaller=smaller)


def rtx(ask: Ask) -> list[Value]:
    """``RTXVideoSuperResolution``: NVIDIA's upscaler on an RTX card; sides are rounded to 8.

    ``quality`` is always ULTRA of the family for clean sources.
    """
    images = ask.get("images", Images)
    if ask.text("resize_type") == "target dimensions":
        width, height = ask.whole("resize_type.width"), ask.whole("resize_type.height")
    else:
        factor = ask.number("resize_type.scale")
        width, height = round(images.width * factor), round(images.height * factor)
    size = (max(8, round(width / 8) * 8), max(8, round(height / 8) * 8))
    try:
        require_rtx()
    except CheckpointError as error:
        raise ask.error(error.message, error.hint) from error
    if ask.engine.runtime.device.type != "cuda":
        raise ask.error("it needs an NVIDIA RTX card", "use ImageUpscaleWithModel or ImageScale")
    have = (images.width, images.height)
    plan = UpscalePlan("rtx", have, Crop(0, 0, *have), size)
    return [_enlarged(ask, images, plan, ask.engine.runtime.dtype)]


def refuses_rtx(_: Node) -> str:
    """Why RTX upscaling cannot run here."""
    try:
        require_rtx()
    except CheckpointError as error:
        return error.message
    return ""


# --- masks --------------------------------------------------------------------------------------

CHANNELS = MappingProxyType({"red": 0, "green": 1, "blue": 2})


def to_mask(ask: Ask) -> list[Value]:
    """``ImageToMask``: one channel of all frames; alpha, which pictures here lack, is refused."""
    channel = ask.text("channel")
    if channel not in CHANNELS:
        raise ask.error("pictures have no alpha channel here", "use red, green or blue")
    chunks = [c[:, CHANNELS[channel]].float().cpu() for c in ask.get("image", Images).pixels()]
    return [Mask(torch.cat(chunks))]


def to_image(ask: Ask) -> list[Value]:
    """``MaskToImage``: grey."""
    values = ask.get("mask", Mask).values
    return [Images.of(values[:, None].repeat(1, 3, 1, 1))]


def solid_mask(ask: Ask) -> list[Value]:
    """``SolidMask``."""
    size = (1, ask.whole("height"), ask.whole("width"))
    return [Mask(torch.full(size, ask.number("value")))]


def inverted(ask: Ask) -> list[Value]:
    """``InvertMask``."""
    return [Mask(1 - ask.get("mask", Mask).values)]


def thresholded(ask: Ask) -> list[Value]:
    """``ThresholdMask``: 1 above the value."""
    return [Mask((ask.get("mask", Mask).values > ask.number("value")).float())]


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "LoadImage": Meaning(load_image),
        "LoadImageMask": Meaning(load_mask),
        "EmptyImage": Meaning(empty_image),
        "RepeatImageBatch": Meaning(repeated),
        "ImageFromBatch": Meaning(from_batch),
        "ImageScale": Meaning(scale),
        "ImageScaleBy": Meaning(scale_by),
        "ResizeImagesByLongerEdge": Meaning(longer_edge),
        "ResizeImageMaskNode": Meaning(resize_node),
        "ImageCrop": Meaning(crop),
        "ResizeAndPadImage": Meaning(resize_and_pad),
        "GetImageSize": Meaning(image_size),
        "GetImageSizeAndCount": Meaning(image_size_and_count),
        "LTXVPreprocess": Meaning(preprocess),
        "ImageUpscaleWithModel": Meaning(with_model),
        "RTXVideoSuperResolution": Meaning(rtx, refuses=refuses_rtx),
        "ImageToMask": Meaning(to_mask),
        "MaskToImage": Meaning(to_image),
        "SolidMask": Meaning(solid_mask),
        "InvertMask": Meaning(inverted),
        "ThresholdMask": Meaning(thresholded),
    }
)
