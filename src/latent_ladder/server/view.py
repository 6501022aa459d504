"""``/view``: results, uploads and previews, complete, in ranges, or converted to a picture."""

from __future__ import annotations

import asyncio
import io
import mimetypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from aiohttp import web

from latent_ladder.comfyui.file_names import split_folder_tag
from latent_ladder.errors import MediaError, RequestError
from latent_ladder.media.image_files import ImageTooLargeError, open_image
from latent_ladder.server.data_folders import DataFolders

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

T = TypeVar("T")

_INERT = frozenset(
    {"application/json", "image/apng", "image/avif", "image/bmp", "image/gif", "image/jpeg",
     "image/png", "image/tiff", "image/webp", "text/plain"}
)  # fmt: skip
"""Types that no browser runs or renders as a page, besides video and sound."""
_BINARY = "application/octet-stream"
_PAGE_POLICY = "default-src 'none'; sandbox"
# Types that the tables of some systems do not have.
_TYPES = {".flac": "audio/flac", ".mkv": "video/x-matroska", ".opus": "audio/ogg",
          ".webp": "image/webp", ".webm": "video/webm", ".mp4": "video/mp4", ".json":
          "application/json"}  # fmt: skip
_PREVIEW_FORMATS = {"webp": "WEBP", "jpeg": "JPEG"}
_DEFAULT_QUALITY = 90
_PICTURE_WORK = ThreadPoolExecutor(1, "ladder-picture")
"""Pictures are converted one at a time: each may need some hundred MB."""


async def view_file(request: web.Request, folders: DataFolders) -> web.StreamResponse:
    """Answer ``/view``; 404 if there is no such file. Raises :class:`RequestError`."""
    query = request.query
    name, folder_type = split_folder_tag(query.get("filename", ""), query.get("type", "output"))
    path = folders.path(folder_type, query.get("subfolder", ""), name)
    if not name or not path.is_file():
        raise web.HTTPNotFound(text="no such file")
    picture = await convert_in_turn(
        _read_picture, path, query.get("preview"), query.get("channel", "rgba")
    )
    if picture is not None:
        body, content_type = picture
        return web.Response(body=body, content_type=content_type, headers=file_headers(path.name))
    return file_response(path)


def file_response(path: Path, name: str = "") -> web.FileResponse:
    """A file of a client, whole or in ranges, that no browser runs; ``name`` is for "save as"."""
    content_type = content_type_of(path)
    headers = file_headers(name or path.name, inline=content_type != _BINARY)
    return web.FileResponse(path, headers={**headers, "Content-Type": content_type})


def file_headers(name: str, inline: bool = True) -> dict[str, str]:
    """Headers for a file: its name, and for types that are not shown, protection against it."""
    disposition = _content_disposition(name)
    if inline:
        return {"Content-Disposition": f"inline; {disposition}"}
    return {
        "Content-Disposition": f"attachment; {disposition}",
        "Content-Security-Policy": _PAGE_POLICY,
    }


async def convert_in_turn(work: Callable[..., T], *arguments: object) -> T:
    """The result of ``work``, which decodes pictures, after all earlier ones have finished."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_PICTURE_WORK, work, *arguments)


def content_type_of(path: Path) -> str:
    """Content type by the suffix; ``application/octet-stream`` for all that is not inert.

    XML in all its forms (SVG, XHTML, feeds, ...) can carry scripts.
    """
    suffix = path.suffix.lower()
    content_type = _TYPES.get(suffix) or mimetypes.guess_type(path.name)[0] or _BINARY
    is_media = content_type.startswith(("video/", "audio/")) and "xml" not in content_type
    return content_type if is_media or content_type in _INERT else _BINARY


def _content_disposition(name: str) -> str:
    """The file name for "save as", in ASCII and in UTF-8 (RFC 6266)."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, errors='replace')}"


def _read_picture(path: Path, preview: str | None, channel: str) -> tuple[bytes, str] | None:
    """The converted picture and its type; ``None`` if the file itself is the answer."""
    if preview is None and channel not in ("rgb", "a"):
        return None
    try:
        with open_image(path) as image:
            return _convert_picture(image, preview, channel)
    except ImageTooLargeError as error:
        raise RequestError(error.message, error.hint) from error
    except MediaError:
        return None  # a video, a sound file, a damaged picture


def _convert_picture(picture: PilImage, preview: str | None, channel: str) -> tuple[bytes, str]:
    from PIL import Image

    if channel == "rgb":
        picture = picture.convert("RGB")
    elif channel == "a":
        alpha = picture.convert("RGBA").getchannel("A")
        picture = Image.new("RGBA", picture.size)
        picture.putalpha(alpha)
    image_format, quality = _parse_preview(preview, channel)
    out = io.BytesIO()
    if image_format == "JPEG":
        picture = picture.convert("RGB")
    elif picture.mode not in ("RGB", "RGBA", "L"):
        picture = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
    picture.save(out, image_format, quality=quality)
    return out.getvalue(), f"image/{image_format.lower()}"


def _parse_preview(preview: str | None, channel: str) -> tuple[str, int]:
    """Format and quality: ``"jpeg;80"`` is JPEG at 80. WebP for alpha, PNG without a preview."""
    if preview is None:
        return "PNG", _DEFAULT_QUALITY
    name, _, text = preview.partition(";")
    image_format = "WEBP" if channel == "a" else _PREVIEW_FORMATS.get(name.lower(), "WEBP")
    is_number = text.isascii() and text.isdigit()
    return image_format, min(int(text), 100) if is_number else _DEFAULT_QUALITY
