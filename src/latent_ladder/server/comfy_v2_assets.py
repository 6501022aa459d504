"""Assets of the Comfy API v2: uploads and results, by id and by hash.

An id is the encoded place of a file below the data folders, so it stays valid across restarts
without a table. Hashes (BLAKE3) of uploads are remembered, so that a client sends a file once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from blake3 import blake3

from latent_ladder.errors import RequestError
from latent_ladder.server.app_context import Context, get_context, read_object
from latent_ladder.server.data_folders import check_file_name
from latent_ladder.server.job_store import StoredUpload
from latent_ladder.server.request_errors import error_response
from latent_ladder.server.upload import Form, read_form, store_file
from latent_ladder.server.view import content_type_of, file_response

ASSET_TYPE = "core/ASSET"
LINK_LIFETIME = timedelta(days=1)
MAX_ID = 4000


class Place(NamedTuple):
    """A file below a data folder; ``job_id`` made it, if it is a result."""

    folder_type: str
    subfolder: str
    name: str
    job_id: str = ""

    @property
    def asset_id(self) -> str:
        """The id of the asset."""
        return base64.urlsafe_b64encode(json.dumps(self).encode()).decode().rstrip("=")

    @property
    def reference(self) -> str:
        """The name for an input of a node, as ``sub/x.png`` or ``x.png [output]``."""
        name = f"{self.subfolder}/{self.name}" if self.subfolder else self.name
        return name if self.folder_type == "input" else f"{name} [{self.folder_type}]"


def parse_asset_id(asset_id: str) -> Place | None:
    """The place of an asset; ``None`` for text that is not an id."""
    if len(asset_id) > MAX_ID:
        return None
    try:
        padded = asset_id + "=" * (-len(asset_id) % 4)
        parts = json.loads(base64.b64decode(padded, b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    is_list = isinstance(parts, list) and len(parts) == len(Place._fields)
    return Place(*parts) if is_list and all(isinstance(part, str) for part in parts) else None


def find_asset(context: Context, asset_id: str) -> tuple[Place, Path] | None:
    """Place and path of an asset whose file exists."""
    place = parse_asset_id(asset_id)
    if place is None:
        return None
    try:
        path = context.config.folders.path(place.folder_type, place.subfolder, place.name)
    except RequestError:
        return None
    return (place, path) if path.is_file() else None


def describe_output(
    context: Context, item: Mapping[str, Any], job_id: str, base: str
) -> dict[str, Any]:
    """The fields of an asset for a result in ComfyUI's form."""
    place = Place(str(item.get("type", "output")), str(item.get("subfolder", "")),
                  str(item["filename"]), job_id)  # fmt: skip
    found = find_asset(context, place.asset_id)
    return {
        "id": place.asset_id,
        "hash": None,
        "size_bytes": found[1].stat().st_size if found is not None else 0,
        "content_type": content_type_of(Path(place.name)),
        "job_id": job_id,
        **_links(place, base),
    }


def resolve_assets(value: Any, context: Context, missing: list[str]) -> Any:
    """A workflow with the names of files in place of asset references."""
    if isinstance(value, Mapping):
        if value.get("__type") == ASSET_TYPE:
            return _resolve_reference(value, context, missing)
        return {key: resolve_assets(item, context, missing) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_assets(item, context, missing) for item in value]
    return value


def _resolve_reference(value: Mapping[str, Any], context: Context, missing: list[str]) -> str:
    info = value.get("info")
    info = info if isinstance(info, Mapping) else {}
    found = find_asset(context, str(info.get("id", "")))
    if found is not None:
        return found[0].reference
    by_hash = _find_by_hash(context, str(info.get("hash", "")))
    if by_hash is not None and not info.get("id"):
        return by_hash.reference
    missing.append(str(info.get("id", "no id"))[:100])
    return ""


# --- routes ---------------------------------------------------------------------------------------


async def post_asset(request: web.Request) -> web.Response:
    """Upload a file for inputs; the same content is stored once."""
    context = get_context(request)
    config = context.config
    form = await read_form(request, config.folders, config.limits.upload, "file")
    try:
        return await _store(form, context, _base(request))
    finally:
        form.discard()


async def _store(form: Form, context: Context, base: str) -> web.Response:
    if form.temp_path is None:
        return error_response(422, "invalid_request", "the form has no `file`")
    text = form.fields.get("file_path") or form.name
    subfolder, _, name = text.removeprefix("input/").rpartition("/")
    try:
        form.name = check_file_name(name)
        form.fields = {**form.fields, "subfolder": subfolder, "type": "input", "overwrite": ""}
        context.config.folders.path("input", subfolder, form.name)
    except RequestError as error:
        return error_response(422, "invalid_request", error.message, error.hint or "")
    digest = await asyncio.to_thread(_hash, form.temp_path)
    expected = form.fields.get("expected_hash", "").strip().lower()
    if expected and expected != digest:
        return error_response(409, "hash_mismatch", "the file has another hash than expected")
    known = _find_by_hash(context, digest)
    if known is not None:
        return web.json_response(_describe(known, context, base) | {"created_new": False})
    stored = await asyncio.to_thread(store_file, form, context.config.folders)
    place = Place("input", stored["subfolder"], stored["name"])
    status = context.config.folders.path(*place[:3]).stat()
    context.jobs.store.add_upload(
        StoredUpload(digest, place.asset_id, status.st_size, status.st_mtime_ns)
    )
    body = _describe(place, context, base) | {"created_new": True}
    return web.json_response(body, status=201)


async def post_from_hash(request: web.Request) -> web.Response:
    """The asset with a hash, without sending the file again."""
    digest = (await read_object(request)).get("hash")
    known = _find_by_hash(get_context(request), str(digest))
    if known is None:
        return error_response(404, "blob_not_found", "no upload has this hash")
    body = _describe(known, get_context(request), _base(request)) | {"created_new": False}
    return web.json_response(body)


async def head_hash(request: web.Request) -> web.Response:
    """200 if a file with the hash was uploaded."""
    known = _find_by_hash(get_context(request), request.match_info["hash"])
    return web.Response(status=404 if known is None else 200)


async def get_asset(request: web.Request) -> web.Response:
    """Facts about an asset."""
    found = find_asset(get_context(request), request.match_info["id"])
    if found is None:
        return _unknown_asset()
    return web.json_response(_describe(found[0], get_context(request), _base(request)))


async def get_content(request: web.Request) -> web.StreamResponse:
    """The bytes of an asset, whole or in ranges."""
    found = find_asset(get_context(request), request.match_info["id"])
    if found is None:
        return _unknown_asset()
    return file_response(found[1])


async def delete_asset(request: web.Request) -> web.Response:
    """Delete an upload; results are not deleted."""
    context = get_context(request)
    found = find_asset(context, request.match_info["id"])
    if found is None or found[0].folder_type != "input":
        return _unknown_asset()
    await asyncio.to_thread(found[1].unlink, missing_ok=True)
    context.jobs.store.remove_upload(found[0].asset_id)
    return web.Response(status=204)


def _unknown_asset() -> web.Response:
    return error_response(404, "not_found", "no such asset, or its file is gone")


def _find_by_hash(context: Context, digest: str) -> Place | None:
    """The upload with a hash, unless its file has changed since."""
    known = context.jobs.store.find_upload(hash=digest.strip().lower())
    found = None if known is None else find_asset(context, known.place)
    if known is None or found is None:
        return None
    status = found[1].stat()
    unchanged = (status.st_size, status.st_mtime_ns) == (known.size, known.modified_ns)
    return found[0] if unchanged else None


def _describe(place: Place, context: Context, base: str) -> dict[str, Any]:
    path = context.config.folders.path(*place[:3])
    status = path.stat()
    known = context.jobs.store.find_upload(place=place.asset_id)
    return {
        "id": place.asset_id,
        "hash": None if known is None else known.hash,
        "size_bytes": status.st_size,
        "content_type": content_type_of(path),
        "file_path": f"{place.subfolder}/{place.name}" if place.subfolder else place.name,
        "created_at": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(),
        **({"job_id": place.job_id} if place.job_id else {}),
        **_links(place, base),
    }


def _links(place: Place, base: str) -> dict[str, str]:
    return {
        "url": f"{base}/api/v2/assets/{place.asset_id}/content",
        "url_expires_at": (datetime.now(UTC) + LINK_LIFETIME).isoformat(),
    }


def _hash(path: Path) -> str:
    return "blake3:" + str(blake3().update_mmap(path).hexdigest())


def _base(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"


ROUTES = (
    web.post("/api/v2/assets", post_asset),
    web.post("/api/v2/assets/from-hash", post_from_hash),
    web.head("/api/v2/assets/by-hash/{hash}", head_hash),
    web.get("/api/v2/assets/{id}", get_asset),
    web.delete("/api/v2/assets/{id}", delete_asset),
    web.get("/api/v2/assets/{id}/content", get_content),
)
