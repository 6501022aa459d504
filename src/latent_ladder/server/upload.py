"""``/upload/image`` and ``/upload/mask``: files from a client into a data folder."""

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

from latent_ladder.comfyui.file_names import split_folder_tag
from latent_ladder.errors import MediaError, RequestError
from latent_ladder.media.image_files import open_image
from latent_ladder.server.data_folders import DataFolders, check_file_name
from latent_ladder.server.view import convert_in_turn
from latent_ladder.storage.atomic_write import commit, explain_write_error
from latent_ladder.storage.temporary_files import part_path

CHUNK_BYTES = 2**18
MAX_FIELD_BYTES = 2**16
MAX_FIELDS = 20


@dataclass
class Form:
    """A multipart form: its text fields, and its one file, already on disk at ``temp_path``."""

    fields: dict[str, str] = field(default_factory=dict)
    name: str = ""
    temp_path: Path | None = None

    def discard(self) -> None:
        """Delete the temporary file."""
        if self.temp_path is not None:
            self.temp_path.unlink(missing_ok=True)


async def _read_form(request: web.Request, folders: DataFolders, max_bytes: int) -> Form:
    """Read a form that must have a file. Raises :class:`RequestError`."""
    form = await read_form(request, folders, max_bytes)
    if form.temp_path is None:
        raise RequestError("the form has no file", "send it as the field `image`")
    return form


async def upload_file(request: web.Request, folders: DataFolders, max_bytes: int) -> web.Response:
    """Store a picture, video or sound; ``" (1)"`` is added to the name of a different file."""
    form = await _read_form(request, folders, max_bytes)
    try:
        return web.json_response(await asyncio.to_thread(store_file, form, folders))
    finally:
        form.discard()


async def upload_mask(request: web.Request, folders: DataFolders, max_bytes: int) -> web.Response:
    """Store a copy of the picture ``original_ref`` with the alpha channel of the upload."""
    form = await _read_form(request, folders, max_bytes)
    try:
        return web.json_response(await convert_in_turn(_store_masked, form, folders))
    finally:
        form.discard()


async def read_form(
    request: web.Request, folders: DataFolders, max_bytes: int, field_name: str = "image"
) -> Form:
    """Read a form; its file goes to the disk of the input folder while it arrives.

    A form may have no file: ``temp_path`` is then ``None``. Raises :class:`RequestError`.
    """
    if not request.content_type.startswith("multipart/"):
        raise RequestError(
            "the body is not a multipart form", f"send a form with a file `{field_name}`"
        )
    form = Form()
    try:
        reader = await request.multipart()
        async for part in _iterate_parts(reader):
            if part.name == field_name and form.temp_path is None:
                await _save_part(part, form, folders, max_bytes)
            elif part.name:
                form.fields[part.name[:100]] = (await _read_field(part)).decode("utf-8", "replace")
    except BaseException as error:
        form.discard()
        if isinstance(error, ValueError):
            raise RequestError(f"the form cannot be read: {error}", "send it again") from error
        raise
    return form


async def _iterate_parts(reader: MultipartReader) -> AsyncIterator[BodyPartReader]:
    for _ in range(MAX_FIELDS):
        part = await reader.next()
        if part is None:
            return
        if isinstance(part, BodyPartReader):
            yield part
    raise RequestError(f"the form has more than {MAX_FIELDS} fields", "send fewer")


async def _read_field(part: BodyPartReader) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(8192):
        data += chunk
        if len(data) > MAX_FIELD_BYTES:
            raise RequestError(
                f"field {part.name} is longer than {MAX_FIELD_BYTES} bytes", "shorten it"
            )
    return bytes(data)


async def _save_part(
    part: BodyPartReader, form: Form, folders: DataFolders, max_bytes: int
) -> None:
    """Write the file of a form to a temporary path in the input folder."""
    form.name = check_file_name(part.filename or "")
    form.temp_path = part_path(folders.input / "upload")
    size = 0
    try:
        with form.temp_path.open("wb") as out:
            while chunk := await part.read_chunk(CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise web.HTTPRequestEntityTooLarge(max_size=max_bytes, actual_size=size)
                await asyncio.to_thread(out.write, chunk)
    except OSError as error:
        raise explain_write_error(error, MediaError, form.name, folders.input, size) from error


def store_file(form: Form, folders: DataFolders) -> dict[str, str]:
    """Move the file of a form to its place; its name, subfolder and folder type."""
    folder_type, subfolder, folder = _target_folder(form, folders)
    if form.temp_path is None:
        raise ValueError("the form has no file")
    overwrite = form.fields.get("overwrite", "").lower() in ("true", "1")
    path = folder / form.name
    if not overwrite:
        path, is_same = _find_free_path(path, form.temp_path)
        if is_same:
            return {"name": path.name, "subfolder": subfolder, "type": folder_type}
    folders.path(folder_type, subfolder, path.name)  # the name may be a link to another folder
    if path.is_dir():
        raise RequestError(f"{path.name} is a folder", "use another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temp_path = part_path(path)
        form.temp_path.replace(temp_path)
        form.temp_path = temp_path
        commit(temp_path, path)
    except OSError as error:
        raise explain_write_error(error, MediaError, form.name, folder, 0) from error
    form.temp_path = None
    return {"name": path.name, "subfolder": subfolder, "type": folder_type}


def _target_folder(form: Form, folders: DataFolders) -> tuple[str, str, Path]:
    folder_type = form.fields.get("type") or "input"
    subfolder = form.fields.get("subfolder", "").strip("/")
    return folder_type, subfolder, folders.path(folder_type, subfolder)


def _find_free_path(path: Path, temp_path: Path) -> tuple[Path, bool]:
    """First of ``x.png``, ``x (1).png`` ... that is free, or has the same content (``True``)."""
    candidate, number = path, 0
    digest = None
    while candidate.exists():
        if candidate.is_file() and candidate.stat().st_size == temp_path.stat().st_size:
            digest = digest or _hash_file(temp_path)
            if _hash_file(candidate) == digest:
                return candidate, True
        number += 1
        candidate = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return candidate, False


def _hash_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _store_masked(form: Form, folders: DataFolders) -> dict[str, str]:
    original = _original_path(form, folders)
    if form.temp_path is None:
        raise ValueError("the form has no file")
    form.temp_path.write_bytes(_apply_mask(original, form.temp_path))
    return store_file(form, folders)


def _original_path(form: Form, folders: DataFolders) -> Path:
    """Path of the picture in the field ``original_ref``."""
    try:
        reference: Mapping[str, Any] = json.loads(form.fields.get("original_ref", ""))
        annotated_name = str(reference["filename"])
        folder_type = str(reference.get("type") or "output")
        subfolder = str(reference.get("subfolder") or "")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            "original_ref does not name a picture", 'send {"filename": ..., "type": ...}'
        ) from error
    name, folder_type = split_folder_tag(annotated_name, folder_type)
    path = folders.path(folder_type, subfolder, name)
    if not path.is_file():
        raise web.HTTPNotFound(text="no such picture")
    return path


def _apply_mask(original: Path, mask: Path) -> bytes:
    """The original as PNG, with the alpha channel of the mask and the original's text chunks."""
    from PIL import PngImagePlugin

    try:
        with (
            open_image(original) as below,
            open_image(mask) as above,
        ):
            texts = PngImagePlugin.PngInfo()
            for key, value in below.info.items():
                if isinstance(value, str):
                    texts.add_text(str(key), value)
            picture = below.convert("RGBA")
            picture.putalpha(above.convert("RGBA").getchannel("A").resize(picture.size))
    except MediaError as error:
        raise RequestError(error.message, error.hint) from error
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=4, pnginfo=texts)
    return out.getvalue()
