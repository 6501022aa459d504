"""Metadata in formats without custom tags: GIF, WebP and WAV.

All tags are written as one JSON text into the single comment that such a file can have: the comment
extension of GIF89a, the ImageDescription of the EXIF chunk in WebP, the comment in the LIST chunk
of a WAV file.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from latent_ladder.media.image_files import open_image
from latent_ladder.storage.temporary_files import part_path

EMBEDDED_TAG_SUFFIXES = (".gif", ".webp")
"""Suffixes of formats whose tags are added to the finished file."""

_EXIF_FLAG = 0x08
_COMMENT = b"\x21\xfe"


def encode_comment(tags: Mapping[str, str]) -> str:
    """All tags as one JSON text, ASCII only."""
    return json.dumps(dict(tags))


def decode_comment(text: str) -> dict[str, str] | None:
    """The tags in a text of :func:`encode_comment`; ``None`` for any other comment."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and all(map(_is_text, found.values())) else None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def embed_tags(path: Path, tags: Mapping[str, str]) -> None:
    """Add tags to a finished GIF or WebP file; other files are not changed. Raises ``OSError``."""
    writer = _WRITERS.get(path.suffix.lower())
    if writer is not None and tags:
        writer(path, encode_comment(tags).encode("ascii"))


def read_image_tags(path: Path) -> dict[str, str]:
    """The tags of a PNG, GIF or WebP file, with those of our JSON comment among them.

    ComfyUI writes ``name:json`` texts into the EXIF entry "Model" and the entries before it; its
    ``prompt`` and ``workflow`` are returned as well. Raises
    :class:`~latent_ladder.errors.MediaError`.
    """
    with open_image(path, decode=False) as image:
        found = {str(k): v for k, v in image.info.items() if isinstance(v, str)}
        comment = image.info.get("comment", b"")
        entries = image.getexif()
        exif = entries.get(0x010E, "")
        named = (str(entry).partition(":") for entry in entries.values())
        found |= {key: text for key, _, text in named if key in ("prompt", "workflow")}
    for text in (exif, comment.decode("utf-8", "replace") if isinstance(comment, bytes) else ""):
        found |= (decode_comment(text) or {}) if isinstance(text, str) else {}
    return found


def _embed_in_gif(path: Path, text: bytes) -> None:
    """Write a copy with a comment block after the header and global palette; replace the file."""
    blocks = (text[i : i + 255] for i in range(0, len(text), 255))
    comment = _COMMENT + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"
    copy = part_path(path)
    try:
        with path.open("rb") as old, copy.open("wb") as new:
            head = old.read(13)
            colours = 3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0
            new.write(head + old.read(colours) + comment)
            shutil.copyfileobj(old, new)
        copy.replace(path)
    finally:
        copy.unlink(missing_ok=True)


def _embed_in_webp(path: Path, text: bytes) -> None:
    """Append an EXIF chunk and set its flag in the header."""
    from PIL.Image import Exif

    exif = Exif()
    exif[0x010E] = text.decode("ascii")
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    with path.open("r+b") as file:
        head = file.read(21)
        if head[12:16] != b"VP8X":
            return  # the simple format for one image, which has no chunks
        file.seek(0, 2)
        file.write(b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))
        file.seek(20)
        file.write(bytes([head[20] | _EXIF_FLAG]))


_WRITERS: Mapping[str, Callable[[Path, bytes], None]] = {
    ".gif": _embed_in_gif,
    ".webp": _embed_in_webp,
}
