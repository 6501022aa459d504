"""Routes for ComfyUI's editor: its files, and the lists that it asks for when it starts.

The editor is the package ``comfyui-frontend-package``, which users install themselves (its licence
is the GPL); its files are served as they are. Templates are the presets of this package.
"""

from __future__ import annotations

import asyncio
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from latent_ladder.errors import RequestError
from latent_ladder.request.presets import preset_names
from latent_ladder.server import system_info
from latent_ladder.server.app_context import get_context, read_object
from latent_ladder.server.data_folders import FOLDER_TYPES, resolve_inside
from latent_ladder.server.file_listing import FOLDERS, FileListing
from latent_ladder.server.preset_graphs import export_preset
from latent_ladder.server.video_pictures import preset_card

PACKAGE = "comfyui_frontend_package"
PIP_COMMAND = "pip install comfyui-frontend-package"
TEMPLATES = "latent-ladder"
"""Name of the group of templates."""
_CACHED_FOLDERS = ("assets", "fonts")
"""Folders whose file names change with their content."""
_TYPES = {
    ".css": "text/css", ".html": "text/html", ".ico": "image/x-icon", ".js": "text/javascript",
    ".json": "application/json", ".map": "application/json", ".mjs": "text/javascript",
    ".svg": "image/svg+xml", ".ttf": "font/ttf", ".txt": "text/plain", ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json", ".webp": "image/webp", ".woff": "font/woff",
    ".woff2": "font/woff2", ".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif",
    ".mp3": "audio/mpeg", ".mp4": "video/mp4",
}  # fmt: skip


def find_editor() -> Path:
    """The folder of the installed editor. Raises :class:`RequestError` if there is none."""
    spec = find_spec(PACKAGE)
    for place in [] if spec is None else spec.submodule_search_locations or []:
        folder = Path(place) / "static"
        if (folder / "index.html").is_file():
            return folder
    raise RequestError("--frontend needs ComfyUI's editor, which is not installed", PIP_COMMAND)


# --- the editor's files ---------------------------------------------------------------------------


async def get_page(request: web.Request) -> web.StreamResponse:
    """The editor, or a page that describes this server."""
    frontend = get_context(request).config.frontend
    if frontend is None:
        return web.Response(text=system_info.build_page(), content_type="text/html")
    return _static_file(frontend / "index.html", "no-cache")


async def get_static(request: web.Request) -> web.StreamResponse:
    """A file of the editor."""
    frontend, name = get_context(request).config.frontend, request.match_info["path"]
    if frontend is None:
        raise web.HTTPNotFound(text="no such route")
    path = resolve_inside(frontend, name)
    if not path.is_file():
        raise web.HTTPNotFound(text="no such route")
    is_cached = name.startswith(tuple(f"{folder}/" for folder in _CACHED_FOLDERS))
    return _static_file(path, "max-age=31536000, immutable" if is_cached else "no-cache")


def _static_file(path: Path, cache: str) -> web.FileResponse:
    content_type = _TYPES.get(path.suffix.lower(), "application/octet-stream")
    if content_type.startswith("text/"):
        content_type += "; charset=utf-8"
    return web.FileResponse(path, headers={"Content-Type": content_type, "Cache-Control": cache})


# --- templates ------------------------------------------------------------------------------------


async def get_templates(_: web.Request) -> web.Response:
    """Names of the templates: the presets, the embedded model's first."""
    names = sorted(preset_names(), key=lambda name: (name != "pocket", name))
    return web.json_response({TEMPLATES: names})


async def get_template(request: web.Request) -> web.Response:
    """A preset as a workflow for the editor, with the installed model files; or its picture."""
    name, _, suffix = request.match_info["name"].rpartition(".")
    is_ours = request.match_info["module"] == TEMPLATES and name in preset_names()
    if not is_ours or suffix not in ("json", "jpg"):
        raise web.HTTPNotFound(text="no such template")
    if suffix == "jpg":
        return web.Response(
            body=await asyncio.to_thread(preset_card, name), content_type="image/jpeg"
        )
    context = get_context(request)
    workflow = await asyncio.to_thread(export_preset, name, context.config.models)
    return web.json_response(workflow)


# --- lists ----------------------------------------------------------------------------------------


def _constant(value: Any) -> Handler:
    """A handler that answers with a value."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(value)

    return answer


async def get_model_folders(_: web.Request) -> web.Response:
    """The folders of models, without their paths on this machine."""
    return web.json_response([{"name": name, "folders": []} for name in FOLDERS])


async def get_model_files(request: web.Request) -> web.Response:
    """The files of one folder of models, with size and times (seconds since 1970)."""
    folder = request.match_info["folder"]
    if folder not in FOLDERS:
        raise web.HTTPNotFound(text="no such folder of models")
    listing = get_context(request).listing
    find = functools.partial(_describe_models, listing, folder)
    return web.json_response(await asyncio.to_thread(find))


def _describe_models(listing: FileListing, folder: str) -> list[dict[str, Any]]:
    found = []
    for name in listing.names(folder):
        path = listing.find(folder, name)
        about = {"name": name, "pathIndex": 0}
        if path is not None and path.is_file():
            status = path.stat()
            about |= {
                "size": status.st_size,
                "modified": status.st_mtime,
                "created": status.st_ctime,
            }
        found.append(about)
    return found


async def get_missing(_: web.Request) -> web.Response:
    """404, for things that this server never has."""
    raise web.HTTPNotFound(text="there is none")


async def get_recent_files(request: web.Request) -> web.Response:
    """Names of the uploads or results directly in their folder, the newest first."""
    folder_type = request.match_info["type"]
    if folder_type not in FOLDER_TYPES:
        raise RequestError(f"{folder_type[:40]!a} is not a folder", "use input, output or temp")
    folder = get_context(request).config.folders.root(folder_type)

    def newest() -> list[str]:
        files = [path for path in folder.iterdir() if path.is_file()]
        visible = [path for path in files if not path.name.startswith(".")]
        ordered = sorted(visible, key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.name for path in ordered]

    return web.json_response(await asyncio.to_thread(newest))


async def get_log(request: web.Request) -> web.Response:
    """The latest lines of the server, as text."""
    lines = get_context(request).lines
    return web.json_response("".join(f"{time} {text}\n" for time, text in lines))


async def get_raw_log(request: web.Request) -> web.Response:
    """The latest lines of the server with their times, for the editor's terminal."""
    entries = [{"t": time, "m": f"{text}\r\n"} for time, text in get_context(request).lines]
    return web.json_response({"entries": entries, "size": {"cols": 120, "rows": 30}})


async def patch_log_subscription(request: web.Request) -> web.Response:
    """Accept a subscription to the log; new lines are not pushed."""
    await read_object(request)
    return web.Response()


ROUTES = (
    web.get("/", get_page),
    web.get("/extensions", _constant([])),
    web.get("/i18n", _constant({})),
    web.get("/node_replacements", _constant({})),
    web.get("/global_subgraphs", _constant({})),
    web.get("/global_subgraphs/{id}", get_missing),
    web.get("/workflow_templates", get_templates),
    web.get("/workflow_templates/{module}/{name}", get_template),
    web.get("/templates/index.json", _constant([])),
    web.get("/templates/index_logo.json", _constant({})),
    web.get("/experiment/models", get_model_folders),
    web.get("/experiment/models/{folder}", get_model_files),
)
INTERNAL_ROUTES = (
    web.get("/internal/logs", get_log),
    web.get("/internal/logs/raw", get_raw_log),
    web.patch("/internal/logs/subscribe", patch_log_subscription),
    web.get("/internal/folder_paths", _constant({})),
    web.get("/internal/files/{type}", get_recent_files),
)
STATIC_ROUTES = (web.get("/{path:.+}", get_static),)
