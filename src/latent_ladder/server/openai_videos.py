"""``/v1/videos`` in the form of OpenAI's Videos API, and ``/v1/models``: the presets.

A video is a job of the queue: its request is exported as a graph, so it appears in the queue and
the history of every other interface, too.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.presets import preset_names
from latent_ladder.server.app_context import (
    Context,
    get_context,
    read_object,
    read_query_integer,
)
from latent_ladder.server.client_messages import OWN_EXTRA
from latent_ladder.server.job_routes import all_jobs, find_job
from latent_ladder.server.preset_graphs import export_request, preset_of_installed
from latent_ladder.server.prompt_requests import PromptError, read_prompt
from latent_ladder.server.request_errors import error_response
from latent_ladder.server.upload import Form, read_form
from latent_ladder.server.video_pictures import make_spritesheet, make_thumbnail
from latent_ladder.server.view import convert_in_turn, file_headers, file_response
from latent_ladder.storage.atomic_write import write_atomically

DEFAULT_MODELS = ("", "default", "sora-2", "sora-2-pro")
"""Names of models that mean the preset for the installed files."""
STATES = {
    "pending": "queued",
    "in_progress": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
}
DEFAULT_PAGE, MAX_PAGE = 20, 100
MAX_PICTURE_BYTES = 20 * 2**20
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
_PICTURE_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
_PICTURES = {"thumbnail": make_thumbnail, "spritesheet": make_spritesheet}


# --- new videos -----------------------------------------------------------------------------------


async def post_video(request: web.Request) -> web.Response:
    """Queue a video: ``prompt``; ``model``, ``seconds``, ``size``, ``input_reference``, ``seed``.

    The body is JSON or a form; only the prompt is required.
    """
    context = get_context(request)
    video_id = f"video_{uuid4().hex}"
    if request.content_type.startswith("multipart/"):
        config = context.config
        form = await read_form(request, config.folders, config.limits.upload, "input_reference")
        try:
            fields: dict[str, Any] = dict(form.fields)
            fields["input_reference"] = _store_form_picture(form, context, video_id)
        finally:
            form.discard()
    else:
        fields = await read_object(request)
        picture = fields.get("input_reference")
        fields["input_reference"] = _store_picture(picture, context, video_id)
    table = await asyncio.to_thread(_request_table, fields, context)
    return await _queue(context, video_id, Request.from_dict(table).pick_seed())


async def post_remix(request: web.Request) -> web.Response:
    """Queue a video with the request and the seed of another one, and a new prompt."""
    context, source = get_context(request), request.match_info["id"]
    summary = _find_video(context, source)
    if summary is None:
        return _unknown_video()
    prompt = (await read_object(request)).get("prompt")
    if not isinstance(prompt, str):
        raise RequestError("there is no prompt", 'send {"prompt": "..."}')
    made = Request.from_dict(summary[OWN_EXTRA]["request"]).model_copy(update={"prompt": prompt})
    return await _queue(context, f"video_{uuid4().hex}", made, remixed_from=source)


def _request_table(fields: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The fields of a request for those of the body. Raises :class:`RequestError`."""
    prompt, model = fields.get("prompt"), str(fields.get("model") or "")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError("there is no prompt", 'send {"prompt": "..."}')
    if model in DEFAULT_MODELS:
        model = preset_of_installed(context.config.models)
    elif model not in preset_names():
        raise RequestError(f"model {model[:60]!a} is unknown", f"use {', '.join(preset_names())}")
    changes: dict[str, Any] = {"prompt": prompt, "seed": _read_seed(fields.get("seed"))}
    if fields.get("size"):
        changes |= _read_size(str(fields["size"]))
    if fields.get("seconds"):
        changes["duration_s"] = _read_seconds(fields["seconds"])
    if fields.get("input_reference"):
        changes["images"] = [{"file": fields["input_reference"]}]
    return Request.from_preset(model, **changes).to_dict()


def _read_size(text: str) -> dict[str, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise RequestError(f"size={text[:40]!a} is not WIDTHxHEIGHT", "use 1280x704")
    return {"width": int(match[1]), "height": int(match[2])}


def _read_seed(value: object) -> int:
    if value in (None, ""):
        return -1
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 20:
        raise RequestError(f"seed={text[:40]!a} is not a number", "use 0 to 2**64-1, or none")
    return int(text)


def _read_seconds(value: object) -> float:
    try:
        return float(str(value))
    except ValueError as error:
        raise RequestError(f"seconds={str(value)[:40]!a} is not a number", "use 4") from error


async def _queue(
    context: Context, video_id: str, made: Request, remixed_from: str | None = None
) -> web.Response:
    graph = await asyncio.to_thread(export_request, made, context.config.models, "api")
    for node in graph.values():
        if node["class_type"] == "SaveVideo":
            node["inputs"]["filename_prefix"] = f"video/{video_id}"
    own = {
        "kind": "video",
        "request": made.to_dict(),
        "seconds": f"{made.frames / float(made.fps):g}",
        "remixed_from": remixed_from,
    }
    body = {"prompt": graph, "prompt_id": video_id, "extra_data": {OWN_EXTRA: own}}
    try:
        prompt = await asyncio.to_thread(read_prompt, body, context.listing)
    except PromptError as error:
        about = error.body["error"]
        raise RequestError(about["message"], about.get("details") or "") from error
    context.jobs.add(prompt.to_job(context.jobs.store.next_number))
    summary = _find_video(context, video_id)
    return _unknown_video() if summary is None else web.json_response(_describe(context, summary))


# --- pictures to start from -----------------------------------------------------------------------


def _store_form_picture(form: Form, context: Context, video_id: str) -> str | None:
    """The name of the picture of a form in the input folder."""
    if form.temp_path is None:
        return None
    name = f"{video_id}{Path(form.name).suffix.lower() or '.png'}"
    form.temp_path.replace(context.config.folders.path("input", "", name))
    form.temp_path = None
    return name


def _store_picture(value: object, context: Context, video_id: str) -> str | None:
    """The name of a picture in a JSON body, as a ``data:`` address."""
    if value is None:
        return None
    address = value.get("image_url") if isinstance(value, Mapping) else None
    hint = "send the file in a form, or image_url with data:image/png;base64,..."
    if not isinstance(address, str) or not address.startswith("data:"):
        raise RequestError("input_reference is not a picture", hint)
    head, _, text = address.removeprefix("data:").partition(",")
    suffix = _PICTURE_SUFFIXES.get(head.removesuffix(";base64"))
    if suffix is None or not head.endswith(";base64") or len(text) > MAX_PICTURE_BYTES * 4 // 3:
        raise RequestError("input_reference is no JPEG, PNG or WebP of up to 20 MiB", hint)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("input_reference is not valid base64", hint) from error
    name = f"{video_id}{suffix}"
    write_atomically(context.config.folders.path("input", "", name), data)
    return name


# --- existing videos ------------------------------------------------------------------------------


async def get_videos(request: web.Request) -> web.Response:
    """Videos in pages: ``after``, ``limit``, ``order``."""
    context, query = get_context(request), request.query
    limit, order = read_query_integer(request, "limit"), query.get("order") or "desc"
    limit = DEFAULT_PAGE if limit is None else limit
    if not 1 <= limit <= MAX_PAGE or order not in ("asc", "desc"):
        raise RequestError("limit or order is invalid", f"use limit=1 to {MAX_PAGE}, order=desc")
    videos = [job for job in all_jobs(context.jobs) if _is_video(job)]
    videos.sort(key=lambda job: (job["create_time"], job["id"]), reverse=order == "desc")
    ids = [job["id"] for job in videos]
    after = query.get("after")
    if after and after not in ids:
        raise RequestError(f"after={after[:60]!a} is not a video", "leave it out")
    start = ids.index(after) + 1 if after else 0
    page = videos[start : start + limit]
    return web.json_response(
        {
            "object": "list",
            "data": [_describe(context, job) for job in page],
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + limit < len(videos),
        }
    )


async def get_video(request: web.Request) -> web.Response:
    """The state of a video."""
    context = get_context(request)
    summary = _find_video(context, request.match_info["id"])
    return _unknown_video() if summary is None else web.json_response(_describe(context, summary))


async def get_content(request: web.Request) -> web.StreamResponse:
    """The MP4 of a finished video, or a picture of it: ``variant=thumbnail`` or ``spritesheet``."""
    context, video_id = get_context(request), request.match_info["id"]
    variant = request.query.get("variant") or "video"
    summary = _find_video(context, video_id)
    if summary is None:
        return _unknown_video()
    if variant != "video" and variant not in _PICTURES:
        raise RequestError(
            f"variant={variant[:40]!a} is unknown", f"use video, {', '.join(_PICTURES)}"
        )
    if summary["status"] != "completed":
        state = STATES[summary["status"]]
        return error_response(400, "video_not_ready", f"the video is {state}, not completed")
    path = next(iter(_files(context, video_id)), None)
    if path is None:
        return error_response(404, "not_found", "the file of the video is gone")
    if variant == "video":
        return file_response(path)
    data, suffix = await convert_in_turn(_PICTURES[variant], path)
    content_type = {".webp": "image/webp", ".jpg": "image/jpeg"}[suffix]
    headers = file_headers(f"{video_id}{suffix}")
    return web.Response(body=data, content_type=content_type, headers=headers)


async def delete_video(request: web.Request) -> web.Response:
    """Delete a video with its files; one that is being made is stopped."""
    context, video_id = get_context(request), request.match_info["id"]
    if _find_video(context, video_id) is None:
        return _unknown_video()
    files = _files(context, video_id)
    context.jobs.delete(video_id)
    for path in files:
        with suppress(OSError):
            path.unlink()
    return web.json_response({"id": video_id, "object": "video.deleted", "deleted": True})


async def get_models(_: web.Request) -> web.Response:
    """The presets, as models."""
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "latent-ladder"}
        for name in preset_names()
    ]
    return web.json_response({"object": "list", "data": data})


def _is_video(summary: Mapping[str, Any]) -> bool:
    own = summary.get(OWN_EXTRA)
    return isinstance(own, Mapping) and own.get("kind") == "video" and "request" in own


def _find_video(context: Context, video_id: str) -> dict[str, Any] | None:
    summary = find_job(context.jobs, video_id)
    return summary if summary is not None and _is_video(summary) else None


def _describe(context: Context, summary: Mapping[str, Any]) -> dict[str, Any]:
    own = summary[OWN_EXTRA]
    table, ended = own["request"], summary.get("execution_end_time")
    state = STATES[summary["status"]]
    return {
        "id": summary["id"],
        "object": "video",
        "created_at": int(summary["create_time"]) // 1000,
        "completed_at": int(ended) // 1000 if ended and state == "completed" else None,
        "expires_at": None,
        "error": _describe_error(summary),
        "model": table.get("preset", ""),
        "progress": _percent(context, summary),
        "prompt": table["prompt"],
        "remixed_from_video_id": own.get("remixed_from"),
        "seconds": own["seconds"],
        "size": f"{table['width']}x{table['height']}",
        "status": state,
        "seed": table.get("seed"),
    }


def _percent(context: Context, summary: Mapping[str, Any]) -> int:
    if summary["status"] == "completed":
        return 100
    current = context.jobs.progress_of(summary["id"])
    return 0 if current is None else min(int(100 * current.progress().fraction), 99)


def _describe_error(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    if summary["status"] == "cancelled":
        return {"code": "cancelled", "message": "the video was cancelled"}
    error = summary.get("execution_error")
    if not error:
        return None
    return {"code": "generation_failed", "message": error.get("exception_message", "")}


def _files(context: Context, video_id: str) -> list[Path]:
    """The result files of a video that are there."""
    entry = context.jobs.store.entry(video_id)
    paths = []
    for shown in {} if entry is None else entry["outputs"].values():
        for item in shown.get("images", ()):
            place = (item["type"], item["subfolder"], item["filename"])
            paths.append(context.config.folders.path(*place))
    return [path for path in paths if path.is_file()]


def _unknown_video() -> web.Response:
    return error_response(404, "not_found", "no such video")


ROUTES = (
    web.post("/v1/videos", post_video),
    web.get("/v1/videos", get_videos),
    web.get("/v1/videos/{id}", get_video),
    web.delete("/v1/videos/{id}", delete_video),
    web.get("/v1/videos/{id}/content", get_content),
    web.post("/v1/videos/{id}/remix", post_remix),
    web.get("/v1/models", get_models),
)
