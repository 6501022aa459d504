"""Settings and files of the editor's user: ``/settings``, ``/userdata`` and ``/users``.

They are in ComfyUI's places below the user folder, ``default/comfy.settings.json`` and
``default/workflows``, so that one folder can serve both programs.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from latent_ladder.errors import MediaError, RequestError
from latent_ladder.server.app_context import get_context, read_body, read_json, read_object
from latent_ladder.server.data_folders import check_file_name, resolve_inside
from latent_ladder.server.view import file_response
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

SETTINGS_FILE = "comfy.settings.json"
STYLE_FILE = "user.css"
MAX_LISTED = 10_000
MAX_DEPTH = 16


# --- settings -------------------------------------------------------------------------------------


async def get_settings(request: web.Request) -> web.Response:
    """All settings of the editor."""
    return web.json_response(await asyncio.to_thread(_read_settings, _root(request)))


async def get_setting(request: web.Request) -> web.Response:
    """One setting; ``null`` if it is not set."""
    settings = await asyncio.to_thread(_read_settings, _root(request))
    return web.json_response(settings.get(request.match_info["id"]))


async def post_settings(request: web.Request) -> web.Response:
    """Change several settings; the others stay."""
    _store_settings(_root(request), await read_object(request))
    return web.Response()


async def post_setting(request: web.Request) -> web.Response:
    """Change one setting."""
    _store_settings(_root(request), {request.match_info["id"]: await read_json(request)})
    return web.Response()


def _read_settings(root: Path) -> dict[str, Any]:
    """The settings; none if there is no file, or a damaged one."""
    try:
        settings = json.loads((root / SETTINGS_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _store_settings(root: Path, changes: dict[str, Any]) -> None:
    """Merge ``changes`` into the file. Runs in the event loop, so that no change is lost."""
    path = root / SETTINGS_FILE
    settings = _read_settings(root)
    if not settings and path.is_file() and path.stat().st_size > len("{}\n"):
        with suppress(OSError):  # a damaged file is not overwritten
            path.replace(path.with_suffix(f".damaged-{int(time.time())}"))
    text = json.dumps(settings | changes, indent=4) + "\n"
    _write(path, text.encode())


# --- files ----------------------------------------------------------------------------------------


async def list_files(request: web.Request) -> web.Response:
    """Files of a folder: their names, names in parts (``split``) or all about them."""
    query = request.query
    if not query.get("dir"):
        raise RequestError("there is no dir", "use /userdata?dir=workflows")
    folder = resolve_inside(_root(request), query["dir"])
    if not folder.is_dir():
        raise web.HTTPNotFound(text="no such folder")
    recurse = _is_true(request, "recurse")
    found = await asyncio.to_thread(lambda: sorted(_walk(folder, recurse)))
    if _is_true(request, "full_info"):
        return web.json_response([_describe(folder, folder / name) for name in found])
    if _is_true(request, "split"):
        return web.json_response([[name, *name.split("/")] for name in found])
    return web.json_response(found)


async def list_entries(request: web.Request) -> web.Response:
    """Files and folders directly in a folder."""
    root = _root(request)
    folder = resolve_inside(root, request.query.get("path", ""))
    if not folder.is_dir():
        raise web.HTTPNotFound(text="no such folder")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return web.json_response([_describe_entry(root, path) for path in entries[:MAX_LISTED]])


async def get_file(request: web.Request) -> web.StreamResponse:
    """One file."""
    return file_response(_existing_file(request))


async def post_file(request: web.Request) -> web.Response:
    """Write a file; folders are created."""
    data = await read_body(request)
    path = _writable_path(request, "file")
    if not _may_write(request, path):
        return web.Response(status=409, text="the file exists already")
    await asyncio.to_thread(_write, path, data)
    return _answer_with(request, path)


async def delete_file(request: web.Request) -> web.Response:
    """Delete a file."""
    path = _existing_file(request)
    with convert_write_errors(MediaError, path.name, path.parent):
        path.unlink()
    return web.Response(status=204)


async def move_file(request: web.Request) -> web.Response:
    """Rename a file, also into another folder."""
    source, target = _existing_file(request), _writable_path(request, "dest")
    if not _may_write(request, target):
        return web.Response(status=409, text="the file exists already")
    with convert_write_errors(MediaError, target.name, target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    return _answer_with(request, target)


async def get_stylesheet(request: web.Request) -> web.StreamResponse:
    """The user's style sheet for the editor; an empty one if there is none."""
    path = _root(request) / STYLE_FILE
    if not path.is_file():
        return web.Response(text="", content_type="text/css")
    return web.FileResponse(path, headers={"Content-Type": "text/css; charset=utf-8"})


async def get_users(_: web.Request) -> web.Response:
    """The one user, who has no name."""
    return web.json_response({"storage": "server", "migrated": True})


def _root(request: web.Request) -> Path:
    return get_context(request).config.user / "default"


def _is_true(request: web.Request, name: str, default: str = "false") -> bool:
    return request.query.get(name, default).lower() == "true"


def _existing_file(request: web.Request) -> Path:
    path = resolve_inside(_root(request), request.match_info["file"])
    if not path.is_file():
        raise web.HTTPNotFound(text="no such file")
    return path


def _writable_path(request: web.Request, name: str) -> Path:
    """The path to write that a request names. Raises :class:`RequestError`."""
    text = request.match_info[name]
    path = resolve_inside(_root(request), text)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts or len(parts) > MAX_DEPTH or text.endswith("/") or path.is_dir():
        raise RequestError(f"{text[:60]!a} is not a file name", "name a file below the folder")
    for part in parts:
        check_file_name(part)
    return path


def _may_write(request: web.Request, path: Path) -> bool:
    return _is_true(request, "overwrite", "true") or not path.exists()


def _write(path: Path, data: bytes) -> None:
    with convert_write_errors(MediaError, path.name, path.parent, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def _answer_with(request: web.Request, path: Path) -> web.Response:
    """The path below the user's folder, or all about the file (``full_info``)."""
    root = _root(request).resolve()
    if _is_true(request, "full_info"):
        return web.json_response(_describe(root, path))
    return web.json_response(path.relative_to(root).as_posix())


def _walk(folder: Path, recurse: bool, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Names of the visible files below a folder; links to folders are not followed."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield prefix + entry.name
            elif recurse and depth < MAX_DEPTH and entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), True, f"{prefix}{entry.name}/", depth + 1)


def _describe(root: Path, path: Path) -> dict[str, Any]:
    """Path, size and times (milliseconds since 1970) of a file."""
    status = path.stat()
    return {
        "path": path.relative_to(root).as_posix(),
        "size": status.st_size,
        "modified": status.st_mtime_ns // 10**6,
        "created": status.st_ctime_ns // 10**6,
    }


def _describe_entry(root: Path, path: Path) -> dict[str, Any]:
    about = {"name": path.name, "path": path.relative_to(root.resolve()).as_posix()}
    if path.is_dir():
        return {**about, "type": "directory"}
    return {**about, "type": "file", **_describe(root.resolve(), path)}


ROUTES = (
    web.get("/settings", get_settings),
    web.post("/settings", post_settings),
    web.get("/settings/{id}", get_setting),
    web.post("/settings/{id}", post_setting),
    web.get("/users", get_users),
    web.get("/userdata", list_files),
    web.get("/v2/userdata", list_entries),
    web.get("/user.css", get_stylesheet),
    web.get("/userdata/user.css", get_stylesheet),
    web.get("/userdata/{file}", get_file),
    web.post("/userdata/{file}", post_file),
    web.delete("/userdata/{file}", delete_file),
    web.post("/userdata/{file}/move/{dest}", move_file),
)
