"""``/upload/image`` and ``/upload/mask``: files from a client into its folder, never beyond."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, web

from latent_ladder.errors import MediaError, RequestError
from latent_ladder.server.data_folders import Places, annotated, file_name
from latent_ladder.server.view import FORMATS, MAX_PIXELS
from latent_ladder.storage.atomic_write import commit, explain_write_error, part_path

CHUNK = 2**18
MAX_FIELD = 2**16
MAX_FIELDS = 20


@dataclass
class Form:
    """A multipart form: small fields, and the one file, already on disk under a temporary name."""

    fields: dict[str, str] = field(default_factory=dict)
    name: str = ""
    part: Path | None = None

    def discard(self) -> None:
        """Remove the temporary file."""
        if self.part is not None:
            self.part.unlink(missing_ok=True)


async def upload_image(request: web.Request, places: Places, most: int) -> web.Response:
    """Keep a picture, video or sound; a name that is taken by another content gets ``" (1)"``."""
    form = await _form(request, places, most)
    try:
        return web.json_response(await asyncio.to_thread(_store, form, places))
    finally:
        form.discard()


async def upload_mask(request: web.Request, places: Places, most: int) -> web.Response:
    """Keep a picture of ``original_ref`` whose transparency is that of the upload."""
    form = await _form(request, places, most)
    try:
        return web.json_response(await asyncio.to_thread(_store_masked, form, places))
    finally:
        form.discard()


async def _form(request: web.Request, places: Places, most: int) -> Form:
    """Read a form, the file straight to the disk of the folder it may go to."""
    if not request.content_type.startswith("multipart/"):
        raise RequestError("the body is no multipart form", "send a form with a file `image`")
    form = Form()
    try:
        reader = await request.multipart()
        async for one in _parts(reader):
            if one.name == "image" and form.part is None:
                await _receive(one, form, places, most)
            elif one.name:
                form.fields[one.name[:100]] = (await _small(one)).decode("utf-8", "replace")
    except BaseException as error:
        form.discard()
        if isinstance(error, ValueError):
            raise RequestError(f"the form cannot be read: {error}", "send it again") from error
        raise
    if form.part is None:
        raise RequestError("the form has no file", "send it as the field `image`")
    return form


async def _parts(reader: MultipartReader) -> AsyncIterator[BodyPartReader]:
    for _ in range(MAX_FIELDS):
        one = await reader.next()
        if one is None:
            return
        if isinstance(one, BodyPartReader):
            yield one
    raise RequestError(f"the form has more than {MAX_FIELDS} fields", "send fewer")


async def _small(one: BodyPartReader) -> bytes:
    data = bytearray()
    while chunk := await one.read_chunk(8192):
        data += chunk
        if len(data) > MAX_FIELD:
            raise RequestError(f"field {one.name} is longer than {MAX_FIELD} bytes", "shorten it")
    return bytes(data)


async def _receive(one: BodyPartReader, form: Form, places: Places, most: int) -> None:
    form.name = file_name(one.filename or "")
    form.part = part_path(places.input / "upload")
    size = 0
    try:
        with form.part.open("wb") as out:
            while chunk := await one.read_chunk(CHUNK):
                size += len(chunk)
                if size > most:
                    raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=size)
                await asyncio.to_thread(out.write, chunk)
    except OSError as error:
        raise explain_write_error(error, MediaError, form.name, places.input, size) from error


def _store(form: Form, places: Places) -> dict[str, str]:
    kind, subfolder, folder = _target(form, places)
    if form.part is None:
        raise ValueError("the form has no file")
    overwrite = form.fields.get("overwrite", "").lower() in ("true", "1")
    path = folder / form.name
    if not overwrite:
        path, same = _free_path(path, form.part)
        if same:
            return {"name": path.name, "subfolder": subfolder, "type": kind}
    places.path(kind, subfolder, path.name)  # the name may be a link that leads elsewhere
    if path.is_dir():
        raise RequestError(f"{path.name} is a folder", "use another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = part_path(path)
        form.part.replace(part)
        form.part = part
        commit(part, path)
    except OSError as error:
        raise explain_write_error(error, MediaError, form.name, folder, 0) from error
    form.part = None
    return {"name": path.name, "subfolder": subfolder, "type": kind}


def _target(form: Form, places: Places) -> tuple[str, str, Path]:
    kind = form.fields.get("type") or "input"
    subfolder = form.fields.get("subfolder", "").strip("/")
    return kind, subfolder, places.path(kind, subfolder)


def _free_path(path: Path, part: Path) -> tuple[Path, bool]:
    """``x.png``, ``x (1).png`` ...: the first that is free, or holds the same bytes (``True``)."""
    found, number = path, 0
    digest = None
    while found.exists():
        if found.is_file() and found.stat().st_size == part.stat().st_size:
            digest = digest or _digest(part)
            if _digest(found) == digest:
                return found, True
        number += 1
        found = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return found, False


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _store_masked(form: Form, places: Places) -> dict[str, str]:
    original = _original(form, places)
    if form.part is None:
        raise ValueError("the form has no file")
    form.part.write_bytes(_masked(original, form.part))
    return _store(form, places)


def _original(form: Form, places: Places) -> Path:
    try:
        reference: Mapping[str, Any] = json.loads(form.fields.get("original_ref", ""))
        given = str(reference["filename"])
        folders = str(reference.get("type") or "output"), str(reference.get("subfolder") or "")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            "original_ref is no reference to a picture", 'send {"filename": ..., "type": ...}'
        ) from error
    name, kind = annotated(given, folders[0])
    path = places.path(kind, folders[1], name)
    if not path.is_file():
        raise web.HTTPNotFound(text="no such picture")
    return path


def _masked(original: Path, mask: Path) -> bytes:
    """The original as a PNG with the mask's alpha channel and its own text chunks."""
    from PIL import Image, PngImagePlugin, UnidentifiedImageError

    try:
        with (
            Image.open(original, formats=FORMATS) as below,
            Image.open(mask, formats=FORMATS) as above,
        ):
            if max(below.width * below.height, above.width * above.height) > MAX_PIXELS:
                raise RequestError(f"more than {MAX_PIXELS} pixels", "use a smaller picture")
            texts = PngImagePlugin.PngInfo()
            for key, value in below.info.items():
                if isinstance(value, str):
                    texts.add_text(str(key), value)
            picture = below.convert("RGBA")
            picture.putalpha(above.convert("RGBA").getchannel("A").resize(picture.size))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError("a picture cannot be read", "send PNG, JPEG or WebP") from error
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=4, pnginfo=texts)
    return out.getvalue()
