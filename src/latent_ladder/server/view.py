"""``/view``: results, uploads and previews, whole, in ranges, or as a small picture."""

from __future__ import annotations

import asyncio
import io
import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from latent_ladder.server.data_folders import Places, annotated

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_RUNS_IN_BROWSERS = frozenset(
    {"text/html", "application/xhtml+xml", "text/javascript", "application/javascript",
     "text/css", "text/xml", "application/xml", "image/svg+xml"}
)  # fmt: skip
_UNKNOWN = "application/octet-stream"
# What tables of some systems lack.
_TYPES = {".flac": "audio/flac", ".mkv": "video/x-matroska", ".opus": "audio/ogg",
          ".webp": "image/webp", ".webm": "video/webm", ".mp4": "video/mp4", ".json":
          "application/json"}  # fmt: skip
_PREVIEWS = {"webp": "WEBP", "jpeg": "JPEG"}
_QUALITY = 90
MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pictures that are decoded here; for others, such as EPS, Pillow would start other programs."""


async def view(request: web.Request, places: Places) -> web.StreamResponse:
    """Answer ``/view``; 404 where there is no such file. Raises :class:`RequestError`."""
    query = request.query
    name, kind = annotated(query.get("filename", ""), query.get("type", "output"))
    path = places.path(kind, query.get("subfolder", ""), name)
    if not name or not path.is_file():
        raise web.HTTPNotFound(text="no such file")
    picture = await asyncio.to_thread(
        _picture, path, query.get("preview"), query.get("channel", "rgba")
    )
    named = {"Content-Disposition": _named(path.name)}
    if picture is not None:
        body, content_type = picture
        return web.Response(body=body, content_type=content_type, headers=named)
    return web.FileResponse(path, headers={**named, "Content-Type": content_type_of(path)})


def content_type_of(path: Path) -> str:
    """By the suffix; nothing that a browser would run."""
    found = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or _UNKNOWN
    return _UNKNOWN if found in _RUNS_IN_BROWSERS else found


def _named(name: str) -> str:
    """The name for "save as", in ASCII and as it is (RFC 6266)."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"


def _picture(path: Path, preview: str | None, channel: str) -> tuple[bytes, str] | None:
    """A picture converted as asked; ``None`` where the file itself is the answer."""
    if preview is None and channel not in ("rgb", "a"):
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return _converted(image, preview, channel)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None  # a video, a sound, a damaged picture


def _converted(picture: Picture, preview: str | None, channel: str) -> tuple[bytes, str]:
    from PIL import Image

    if channel == "rgb":
        picture = picture.convert("RGB")
    elif channel == "a":
        alpha = picture.convert("RGBA").getchannel("A")
        picture = Image.new("RGBA", picture.size)
        picture.putalpha(alpha)
    kind, quality = _asked(preview, channel)
    out = io.BytesIO()
    if kind == "JPEG":
        picture = picture.convert("RGB")
    elif picture.mode not in ("RGB", "RGBA", "L"):
        picture = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
    picture.save(out, kind, quality=quality)
    return out.getvalue(), f"image/{kind.lower()}"


def _asked(preview: str | None, channel: str) -> tuple[str, int]:
    """``"jpeg;80"`` -> JPEG at 80; WebP where alpha is wanted, PNG without a preview."""
    if preview is None:
        return "PNG", _QUALITY
    name, _, quality = preview.partition(";")
    kind = "WEBP" if channel == "a" else _PREVIEWS.get(name.lower(), "WEBP")
    return kind, min(int(quality), 100) if quality.isascii() and quality.isdigit() else _QUALITY
