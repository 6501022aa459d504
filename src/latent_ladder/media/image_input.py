"""Image input files: read upright in sRGB, compressed like video.

Reads the formats of :mod:`~latent_ladder.media.image_files`. Transparent parts become black, as in
a clip without a background. 16-bit values are rounded to 8 bits, CMYK and images with a colour
profile are converted to sRGB. Of an animation the first frame is used.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.image_files import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")
"""Pillow's modes of 16-bit greyscale."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class InputImage:
    """A readable input image: upright (width, height), and notes on its conversion."""

    size: tuple[int, int]
    notes: tuple[str, ...]


def check_image(path: Path) -> InputImage:
    """Open and decode an image. Raises :class:`MediaError` for a file that is not an image."""
    with open_image(path) as image:
        notes = tuple(_conversion_notes(image))
        height, width, _ = _to_rgb_array(image).shape
    return InputImage((width, height), notes)


def load_image(path: Path) -> Pixels:
    """An image as (H, W, 3) uint8 sRGB. Raises :class:`MediaError` if it cannot be read."""
    with open_image(path) as image:
        return _to_rgb_array(image)


def compress_like_video(pixels: Pixels, crf: int) -> Pixels:
    """An image (H, W, 3) encoded with H.264 at ``crf`` and decoded again; ``crf=0``: unchanged.

    Odd sides lose one line. One key frame of libx264, preset veryfast, 4:2:0, in memory. The
    official LTX-2 pipelines and ComfyUI do this to an image before the VAE encodes it, because the
    model tends to keep an uncompressed image as a still. The pixels are those of both: a frame
    lasts one second, which x264 gives more bits, and x264 chooses its threads, on which the last
    bits of larger images depend.
    """
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    if crf == 0 or not height or not width:
        return pixels
    import av

    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1), Fraction(1)
    encoder.options = {"crf": str(crf), "preset": "veryfast"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), "rgb24")
    packets = [*encoder.encode(frame.reformat(format="yuv420p")), *encoder.encode(None)]
    decoder = av.CodecContext.create("h264", "r")
    frames = [f for packet in packets for f in decoder.decode(packet)] + decoder.decode(None)
    out: Pixels = np.asarray(frames[0].reformat(format="rgb24").to_ndarray(), np.uint8)
    return out


def _conversion_notes(image: Image) -> Iterator[str]:
    if getattr(image, "n_frames", 1) > 1:
        yield f"is an animation of {image.n_frames} frames, only the first is used"  # type: ignore[attr-defined]
    if image.info.get("truncated"):
        yield "is truncated: its missing part is grey"
    if image.has_transparency_data:
        yield "has transparent parts, which become black"
    if image.mode in DEEP_GREY:
        yield "has 16 bits per pixel, rounded to 8"
    if image.mode == "CMYK":
        yield "is CMYK, converted to sRGB"


def _to_rgb_array(image: Image) -> Pixels:
    from PIL import Image as PillowImage
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP_GREY:
        deep = np.asarray(image, np.float64)
        grey = np.clip(np.round(deep / 257), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise MediaError(
            "an image of floating-point values has no defined white level",
            "save it with 8 or 16 bits",
        )
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        image = PillowImage.new("RGBA", solid.size, "black")
        image.alpha_composite(solid)
    else:
        image = _to_srgb(image)
    return np.array(image.convert("RGB"), np.uint8)


def _to_srgb(image: Image) -> Image:
    """The image converted to sRGB by its colour profile, if it has a usable one."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile: the values are interpreted as sRGB
    return found if found is not None else image
