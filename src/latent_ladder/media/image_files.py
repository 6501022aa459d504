"""Opening of image files: accepted formats, a limit on decoded pixels, readable errors.

All images of users are opened here. Pillow would otherwise accept more formats than people mean,
and start other programs for some of them (Ghostscript for EPS).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from latent_ladder.errors import MediaError
from latent_ladder.storage.read_file import check_regular_file

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
"""Pillow's names of the formats that are opened; none of them starts another program."""
MAX_PIXELS = 120_000_000
"""Most pixels that are decoded from one file, all frames together: 360 MB as 8-bit RGB."""
HEIC = (".heic", ".heif", ".hif")
_TRUNCATED_LOCK = threading.Lock()


class ImageTooLargeError(MediaError):
    """An image with more pixels than :data:`MAX_PIXELS`."""


@contextmanager
def open_image(
    path: Path,
    file: IO[bytes] | None = None,
    *,
    all_frames: bool = False,
    decode: bool = True,
) -> Iterator[Image]:
    """An open image; Pillow's exceptions inside the block become a :class:`MediaError`.

    ``file`` is its content if it is not on the disk; ``path`` then names it in messages. With
    ``all_frames`` the limit :data:`MAX_PIXELS` counts every frame of an animation, else the first.

    The first frame is decoded already, unless ``decode`` is false. Of a truncated JPEG, the missing
    part is grey, and ``image.info["truncated"]`` is true. Raises :class:`MediaError` for a missing,
    empty or damaged file and for formats that are not in :data:`IMAGE_FORMATS`, and
    :class:`ImageTooLargeError`.
    """
    from PIL import Image as PillowImage
    from PIL import UnidentifiedImageError

    if path.suffix.lower() in HEIC:
        raise MediaError(
            f"{path.name} is a HEIC image, which cannot be read", "save it as JPEG or PNG"
        )
    try:
        if file is None:
            _check_file(path)
        with (
            _ignore_warnings(),
            PillowImage.open(file or path, formats=_usable_formats()) as image,
        ):
            _check_pixels(path, image, all_frames=all_frames)
            if decode:
                _load(image)
            yield image
    except FileNotFoundError as error:
        raise MediaError(f"image {path} does not exist", "check the path") from error
    except UnidentifiedImageError as error:
        raise MediaError(
            f"{path.name} cannot be read as an image", "use a PNG, JPEG or WebP file"
        ) from error
    except PillowImage.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"{path.name} has too many pixels, expected at most {MAX_PIXELS:,} in all",
            "scale it down to the size of the clip first",
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(
            f"{path.name} cannot be read as an image: {error}", "use a PNG, JPEG or WebP file"
        ) from error


def _usable_formats() -> tuple[str, ...]:
    """The formats of :data:`IMAGE_FORMATS` that this build of Pillow can read."""
    from PIL import Image as PillowImage

    PillowImage.init()
    return tuple(name for name in IMAGE_FORMATS if name in PillowImage.OPEN)


def _check_pixels(path: Path, image: Image, *, all_frames: bool) -> None:
    """Raise :class:`ImageTooLargeError` if more than :data:`MAX_PIXELS` would be decoded."""
    frames = getattr(image, "n_frames", 1) if all_frames else 1
    if image.width * image.height * frames <= MAX_PIXELS:
        return
    times = f" in {frames} frames" if frames > 1 else ""
    raise ImageTooLargeError(
        f"{path.name} has {image.width}x{image.height} pixels{times}, expected at most "
        f"{MAX_PIXELS:,} in all",
        "convert it to a video first"
        if frames > 1
        else "scale it down to the size of the clip first",
    )


def _check_file(path: Path) -> None:
    if check_regular_file(path, MediaError, "image").st_size == 0:
        raise MediaError(f"{path.name} is empty: 0 bytes", "give a PNG, JPEG or WebP file")


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings about large images and damaged tags of readable ones.

    :data:`MAX_PIXELS` decides about the size.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # DecompressionBombWarning
        yield


def _load(image: Image) -> None:
    """Decode the first frame; of a truncated JPEG as much as there is."""
    from PIL import ImageFile

    with _TRUNCATED_LOCK:
        try:
            image.load()
        except OSError:
            if image.format not in ("JPEG", "MPO"):
                raise
            # Pillow has only this global switch
            ImageFile.LOAD_TRUNCATED_IMAGES = True
            try:
                image.load()
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            image.info["truncated"] = True
