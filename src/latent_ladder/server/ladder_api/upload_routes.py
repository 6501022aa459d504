"""Uploads: files that requests start from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from urllib.parse import unquote

from aiohttp import BodyPartReader, web

from latent_ladder.errors import MediaError, RequestError
from latent_ladder.server.ladder_api.api_errors import ApiError, check_query, conflict, not_found
from latent_ladder.server.ladder_api.run_routes import send_media, send_picture
from latent_ladder.server.ladder_api.studio_context import Studio, get_studio
from latent_ladder.storage.atomic_write import explain_write_error
from latent_ladder.storage.temporary_files import part_path

CHUNK_BYTES = 2**18
DEFAULT_POINTS = 800


async def post_upload(request: web.Request) -> web.Response:
    """Store a file: the field `file` of a form, or the body with the header X-File-Name."""
    studio = get_studio(request)
    limit = studio.context.config.limits.upload
    if request.content_length is not None and request.content_length > limit + 2**16:
        raise _too_large(limit)
    part = part_path(studio.uploads.folder / "upload")
    try:
        name = await _receive(request, part, limit)
        info = await asyncio.to_thread(studio.uploads.add, part, name)
    finally:
        part.unlink(missing_ok=True)
    return web.json_response(info, status=201)


async def _receive(request: web.Request, part: Path, limit: int) -> str:
    """Write the file of a request to ``part``; its name. Raises :class:`ApiError`."""
    if not request.content_type.startswith("multipart/"):
        name = unquote(request.headers.get("X-File-Name", ""))
        if not name:
            raise RequestError("the file has no name", "send the header X-File-Name")
        await _write(request.content.iter_chunked(CHUNK_BYTES), part, limit)
        return name
    try:
        async for field in await request.multipart():
            if isinstance(field, BodyPartReader) and field.name == "file":
                if not field.filename:
                    raise RequestError("the file of the form has no name", "send filename=...")
                await _write(_chunks(field), part, limit)
                return field.filename
    except ValueError as error:
        raise RequestError("the form cannot be read", "send multipart/form-data") from error
    raise RequestError("the form has no file", "send it as the field `file`")


async def _chunks(field: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await field.read_chunk(CHUNK_BYTES):
        yield chunk


async def _write(chunks: AsyncIterable[bytes], part: Path, limit: int) -> None:
    """Write chunks while they arrive. Raises :class:`ApiError` above the limit."""
    size = 0
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                await asyncio.to_thread(file.write, chunk)
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise explain_write_error(error, MediaError, "the upload", part.parent, size) from error


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        "too_large",
        f"the file is larger than {limit / 2**20:,.0f} MiB",
        "use a smaller file, or start the server with a larger --max-upload-size",
    )


def _upload_id(request: web.Request) -> str:
    return request.match_info["id"]


async def get_upload(request: web.Request) -> web.Response:
    """The properties of an upload."""
    studio = get_studio(request)
    return web.json_response(await asyncio.to_thread(studio.uploads.describe, _upload_id(request)))


async def get_upload_file(request: web.Request) -> web.StreamResponse:
    """The uploaded file, whole or in ranges; `proxy=1`: a copy that browsers play."""
    check_query(request.query, ("download", "proxy"))
    studio = get_studio(request)
    path = await asyncio.to_thread(studio.uploads.path, _upload_id(request))
    return await send_media(request, studio, path)


async def get_upload_thumbnail(request: web.Request) -> web.StreamResponse:
    """A small picture (WebP) of an upload."""
    studio = get_studio(request)
    info = await asyncio.to_thread(studio.uploads.describe, _upload_id(request))
    if info["thumbnail_url"] is None:
        raise not_found("picture of a sound")
    path = await asyncio.to_thread(studio.uploads.path, _upload_id(request))
    return send_picture(await studio.media.thumbnail(path))


async def get_waveform(request: web.Request) -> web.Response:
    """The sound of an upload as minimum and maximum of equal parts."""
    check_query(request.query, ("points",))
    studio = get_studio(request)
    text = request.query.get("points", str(DEFAULT_POINTS))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 4000:
        raise RequestError(f"points={text[:20]!r} is not 1 to 4000", "use points=800")
    path = await asyncio.to_thread(studio.uploads.path, _upload_id(request))
    return web.json_response(await studio.media.waveform(path, int(text)))


async def delete_upload(request: web.Request) -> web.Response:
    """Delete an upload that no waiting job needs."""
    studio, upload = get_studio(request), _upload_id(request)
    path = await asyncio.to_thread(studio.uploads.path, upload)
    check_unused(studio, path)
    await asyncio.to_thread(studio.uploads.remove, upload)
    return web.json_response({"done": True})


def check_unused(studio: Studio, path: Path) -> None:
    """Raise :class:`ApiError` if an unfinished job names a file."""
    for job in studio.context.jobs.store.queued_jobs():
        if str(path) in str(job.checked.get("body", "")):
            raise conflict(f"job {job.id} needs this file", "cancel the job first")
