"""Pictures as a clip's frames: read upright and in sRGB, compressed like video, fitted to a canvas.

Whatever Pillow opens is taken: transparent parts lie on black, 16-bit values are rounded to 8,
CMYK and tagged pictures are converted to sRGB, of an animation the first frame counts.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970
"""Pictures above twice Pillow's own warning limit are refused: they may be decompression bombs."""
HEIC = (".heic", ".heif", ".hif")
DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")
"""Pillow's modes of 16-bit greyscale."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A readable picture: (width, height) upright, and what was done to it, in words."""

    size: tuple[int, int]
    notes: tuple[str, ...]


def check_image(path: Path) -> Picture:
    """Open and decode a picture. Raises :class:`MediaError` for what is none."""
    with _opened(path) as image:
        notes = tuple(_notes(image))
        height, width, _ = _pixels(image).shape
    return Picture((width, height), notes)


def load_image(path: Path) -> Pixels:
    """A picture as (H, W, 3) uint8 sRGB. Raises :class:`MediaError`."""
    with _opened(path) as image:
        return _pixels(image)


def fitted(
    pixels: Pixels, canvas: tuple[int, int], window: tuple[int, int], fit: str = "cover"
) -> Pixels:
    """A picture brought to the (width, height) of ``canvas``, centred, sides kept in proportion.

    "cover" fills the canvas and cuts what stands over; "letterbox" shows all of the picture
    inside ``window``, the middle of the canvas that the clip shows, with black around it.
    Bilinear, antialiased where it shrinks.
    """
    from PIL import Image as Pictures

    height, width, _ = pixels.shape
    inside = canvas if fit == "cover" else window
    ratios = (inside[0] / width, inside[1] / height)
    scale = max(ratios) if fit == "cover" else min(ratios)
    size = tuple(max(round(side * scale), 1) for side in (width, height))
    if fit == "cover":  # rounding may not leave a gap
        size = (max(size[0], canvas[0]), max(size[1], canvas[1]))
    resized = Pictures.fromarray(pixels)
    if size != (width, height):
        resized = resized.resize((size[0], size[1]), Pictures.Resampling.BILINEAR)
    out = Pictures.new("RGB", canvas)
    out.paste(resized, ((canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2))
    return np.array(out, np.uint8)


def like_video(pixels: Pixels, crf: int) -> Pixels:
    """A picture after H.264 at ``crf`` and back; odd sides lose a line, ``crf`` 0 changes nothing.

    One key frame of libx264, preset veryfast, 4:2:0, in memory, as the official pipelines do
    before they encode an image: the model then moves it instead of holding a still.
    """
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    if crf == 0 or not height or not width:
        return pixels
    import av

    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 24), Fraction(24)
    encoder.thread_count = 1
    encoder.options = {"crf": str(crf), "preset": "veryfast"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), "rgb24")
    packets = [*encoder.encode(frame.reformat(format="yuv420p")), *encoder.encode(None)]
    decoder = av.CodecContext.create("h264", "r")
    frames = [f for packet in packets for f in decoder.decode(packet)] + decoder.decode(None)
    out: Pixels = np.asarray(frames[0].reformat(format="rgb24").to_ndarray(), np.uint8)
    return out


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """An open picture; whatever Pillow dislikes inside the block becomes a MediaError."""
    from PIL import Image as Pictures
    from PIL import UnidentifiedImageError

    if path.suffix.lower() in HEIC:
        raise MediaError(
            f"{path.name} is a HEIC picture, which cannot be read here", "save it as JPEG or PNG"
        )
    try:
        if path.stat().st_size == 0:
            raise MediaError(f"{path.name} is empty: 0 bytes", "give a PNG, JPEG or WebP file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pictures.DecompressionBombWarning)
            with Pictures.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise MediaError(
                        f"{path.name} has {image.width}x{image.height} pixels, which is too large",
                        "scale it down to the size of the clip first",
                    )
                yield image
    except FileNotFoundError as error:
        raise MediaError(f"there is no picture {path}", "check the path") from error
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Pictures.DecompressionBombError,
    ) as error:
        raise MediaError(
            f"{path.name} cannot be read as a picture: {error}", "use a PNG, JPEG or WebP file"
        ) from error


def _notes(image: Image) -> Iterator[str]:
    if getattr(image, "n_frames", 1) > 1:
        yield f"is an animation of {image.n_frames} frames, its first one is used"  # type: ignore[attr-defined]
    if image.has_transparency_data:
        yield "is transparent in places, they become black"
    if image.mode in DEEP_GREY:
        yield "has 16 bits per pixel, rounded to 8"
    if image.mode == "CMYK":
        yield "is CMYK, converted to sRGB"


def _pixels(image: Image) -> Pixels:
    from PIL import Image as Pictures
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP_GREY:
        deep = np.asarray(image, np.float64)
        grey = np.clip(np.round(deep / 257), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise MediaError(
            "a picture of floating-point values has no white point", "save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        image = Pictures.new("RGBA", solid.size, "black")
        image.alpha_composite(solid)
    else:
        image = _in_srgb(image)
    return np.array(image.convert("RGB"), np.uint8)


def _in_srgb(image: Image) -> Image:
    """The picture by its own colour profile, where it has a usable one."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile: the values are taken for sRGB
    return found if found is not None else image
