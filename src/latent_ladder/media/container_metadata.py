"""Metadata in files that have no place for tags of one's own: GIF, WebP and WAV.

All tags go as one JSON text into the single comment that such a file may have: a comment extension
of GIF89a, the ImageDescription of an EXIF chunk in WebP, the comment of a WAV file's LIST chunk.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from latent_ladder.storage.atomic_write import part_path

EMBEDDED_TAGS = (".gif", ".webp")
"""Endings of files that get their tags after they are written."""

_EXIF_FLAG = 0x08
_COMMENT = b"\x21\xfe"


def as_comment(tags: Mapping[str, str]) -> str:
    """All tags as one text, ASCII only."""
    return json.dumps(dict(tags))


def from_comment(text: str) -> dict[str, str] | None:
    """The tags in a text of :func:`as_comment`; ``None`` for anybody else's comment."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and all(map(_is_text, found.values())) else None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def embed(path: Path, tags: Mapping[str, str]) -> None:
    """Put tags into a finished GIF or WebP; other files are left alone. Raises OSError."""
    writer = _WRITERS.get(path.suffix.lower())
    if writer is not None and tags:
        writer(path, as_comment(tags).encode("ascii"))


def picture_tags(path: Path) -> dict[str, str]:
    """Tags of a PNG, GIF or WebP file, ours unpacked. Raises what Pillow raises.

    ComfyUI has no tags of its own in WebP and JPEG: it writes ``name:json`` into EXIF's model and
    the entries before it.
    """
    from PIL import Image

    with Image.open(path) as image:
        found = {str(k): v for k, v in image.info.items() if isinstance(v, str)}
        comment = image.info.get("comment", b"")
        entries = image.getexif()
        exif = entries.get(0x010E, "")
        named = (str(entry).partition(":") for entry in entries.values())
        found |= {key: text for key, _, text in named if key in ("prompt", "workflow")}
    for text in (exif, comment.decode("utf-8", "replace") if isinstance(comment, bytes) else ""):
        found |= (from_comment(text) or {}) if isinstance(text, str) else {}
    return found


def _into_gif(path: Path, text: bytes) -> None:
    """A comment block after the header and the palette for all, the rest moved behind it."""
    blocks = (text[i : i + 255] for i in range(0, len(text), 255))
    comment = _COMMENT + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"
    copy = part_path(path)
    with path.open("rb") as old, copy.open("wb") as new:
        head = old.read(13)
        colours = 3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0
        new.write(head + old.read(colours) + comment)
        shutil.copyfileobj(old, new)
    copy.replace(path)


def _into_webp(path: Path, text: bytes) -> None:
    """An EXIF chunk at the end, announced in the header."""
    from PIL.Image import Exif

    exif = Exif()
    exif[0x010E] = text.decode("ascii")
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    with path.open("r+b") as file:
        head = file.read(21)
        if head[12:16] != b"VP8X":
            return  # a single picture without room for chunks
        file.seek(0, 2)
        file.write(b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))
        file.seek(20)
        file.write(bytes([head[20] | _EXIF_FLAG]))


_WRITERS: Mapping[str, Callable[[Path, bytes], None]] = {".gif": _into_gif, ".webp": _into_webp}
