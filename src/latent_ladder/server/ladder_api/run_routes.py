"""The gallery: runs, their files, stars, deletion, sweeps, comparisons, exports."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.jobs.job_body import parse_model
from latent_ladder.request.overrides import apply_sets
from latent_ladder.server.app_context import read_object
from latent_ladder.server.ladder_api.api_errors import check_query, conflict, not_found
from latent_ladder.server.ladder_api.job_routes import read_limit
from latent_ladder.server.ladder_api.run_answers import ApplyBody, CompareBody, StarBody
from latent_ladder.server.ladder_api.run_documents import KINDS, sweep_file
from latent_ladder.server.ladder_api.run_index import RunFilter
from latent_ladder.server.ladder_api.studio_context import Studio, get_studio
from latent_ladder.server.view import content_type_of, file_headers, file_response

RUNS_PER_PAGE, MOST_RUNS = 50, 200
FILTERS = (
    "text", "preset", "seed", "kind", "since", "until", "starred", "limit", "cursor",
)  # fmt: skip
EXPORTS = ("comfyui", "comfyui-api", "toml", "json")


async def get_runs(request: web.Request) -> web.Response:
    """Runs of the store that made something, the newest first, in pages; also those of the CLI."""
    check_query(request.query, FILTERS)
    studio, query = get_studio(request), request.query
    starred = None
    if query.get("starred") in ("1", "true", "yes"):
        starred = await asyncio.to_thread(studio.gallery.starred_runs)
    wanted = RunFilter(
        text=query.get("text", "")[:500],
        preset=query.get("preset", ""),
        seed=_seed(query.get("seed")),
        kind=_kind(query.get("kind", "")),
        since=_date(query.get("since"), "since"),
        until=_date(query.get("until"), "until"),
        starred=starred,
    )
    limit = read_limit(request, RUNS_PER_PAGE, MOST_RUNS)
    cursor = query.get("cursor")
    return web.json_response(await asyncio.to_thread(studio.gallery.page, wanted, limit, cursor))


def _seed(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise RequestError(f"seed={text[:30]!r} is not a seed", "use seed=10")
    return int(text)


def _kind(text: str) -> str:
    if text and text not in KINDS:
        raise RequestError(f"kind={text[:30]!r} is unknown", f"use {', '.join(KINDS)}")
    return text


def _date(text: str | None, name: str) -> str:
    if not text:
        return ""
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        hint = f"use {name}=2026-01-31 or a time in ISO 8601"
        raise RequestError(f"{name}={text[:40]!r} is not a date", hint) from error
    return text


async def get_run(request: web.Request) -> web.Response:
    """One run with its request, its stages and what they were made from."""
    studio = get_studio(request)
    return web.json_response(await asyncio.to_thread(studio.gallery.find, _run_id(request)))


def _run_id(request: web.Request) -> str:
    return request.match_info["id"]


async def post_star(request: web.Request) -> web.Response:
    """Set or remove the star of a run, or of one of its clips."""
    studio, run = get_studio(request), _run_id(request)
    body = parse_model(StarBody, await read_object(request))
    await asyncio.to_thread(studio.gallery.star, run, body.clip, body.starred)
    studio.hub.runs_changed()
    return web.json_response(await asyncio.to_thread(studio.gallery.find, run))


async def get_deletion(request: web.Request) -> web.Response:
    """Files, artefacts and bytes that deleting a run would remove."""
    studio = get_studio(request)
    return web.json_response(await asyncio.to_thread(studio.gallery.deletion, _run_id(request)))


async def delete_run(request: web.Request) -> web.Response:
    """Delete a run, its files in the output folder, and artefacts that no other run uses."""
    studio, run = get_studio(request), _run_id(request)
    for job in studio.context.jobs.store.queued_jobs():
        body = job.checked.get("body", {})
        named = [body.get("run"), *(str(name).partition(":")[0] for name in body.get("names", ()))]
        if run in named:
            raise conflict(f"job {job.id} will use run {run}", "cancel the job first")
    freed = await asyncio.to_thread(studio.gallery.delete, run)
    studio.hub.runs_changed()
    return web.json_response(freed)


# --- files ----------------------------------------------------------------------------------------


async def get_file(request: web.Request) -> web.StreamResponse:
    """One file of a run, whole or in ranges; `proxy=1`: a copy that browsers play."""
    check_query(request.query, ("download", "proxy"))
    studio = get_studio(request)
    path = await asyncio.to_thread(
        studio.gallery.file, _run_id(request), request.match_info["name"]
    )
    return await send_media(request, studio, path)


async def get_clip(request: web.Request) -> web.StreamResponse:
    """The video of one clip, whole or in ranges; `proxy=1`: a copy that browsers play."""
    check_query(request.query, ("download", "proxy"))
    studio = get_studio(request)
    number = int(request.match_info["number"])
    path = await asyncio.to_thread(studio.gallery.clip, _run_id(request), number)
    return await send_media(request, studio, path)


async def get_thumbnail(request: web.Request) -> web.StreamResponse:
    """A small picture (WebP) of one clip."""
    studio = get_studio(request)
    number = int(request.match_info["number"])
    path = await asyncio.to_thread(studio.gallery.clip, _run_id(request), number)
    return send_picture(await studio.media.thumbnail(path))


async def send_media(request: web.Request, studio: Studio, path: Path) -> web.StreamResponse:
    """A media file, or its proxy: 202 while that is made."""
    if request.query.get("proxy") in ("1", "true"):
        proxy = await studio.media.proxy(path)
        if proxy is None:
            return web.json_response({"state": "making"}, status=202)
        return file_response(proxy, f"{path.stem}.mp4".replace("%", ""))
    if "%" in path.name:
        raise not_found(f"single file of {path.name}", "add proxy=1 for a video of the pictures")
    if request.query.get("download") in ("1", "true"):
        disposition = file_headers(path.name)["Content-Disposition"]
        headers = {"Content-Disposition": disposition.replace("inline", "attachment", 1)}
        headers["Content-Type"] = content_type_of(path)
        return web.FileResponse(path, headers=headers)
    return file_response(path)


def send_picture(path: Path) -> web.FileResponse:
    """A picture that may be kept: its address belongs to one content."""
    headers = {"Content-Type": "image/webp", "Cache-Control": "private, max-age=60"}
    return web.FileResponse(path, headers=headers)


# --- sweeps, comparison, export -------------------------------------------------------------------


async def get_sweep(request: web.Request) -> web.Response:
    """The points of a sweep with their measures, and the recommended one."""
    studio = get_studio(request)
    return web.json_response(await asyncio.to_thread(studio.gallery.sweep, _run_id(request)))


async def post_apply(request: web.Request) -> web.Response:
    """The request of a sweep with the settings of one point."""
    studio = get_studio(request)
    body = parse_model(ApplyBody, await read_object(request))
    fields = await asyncio.to_thread(_apply, studio, _run_id(request), body.point)
    return web.json_response({"request": fields})


def _apply(studio: Studio, run: str, number: int) -> dict[str, Any]:
    document = studio.gallery.document(run)
    report = sweep_file(document["folder"]) if document["kind"] == "sweep" else None
    if report is None:
        raise not_found(f"report of a sweep for run {run}")
    point = next((p for p in report["points"] if p["number"] == number), None)
    if point is None:
        raise not_found(f"point {number} of sweep {run}")
    return apply_sets(report["request"], tuple(point["sets"]))


async def post_compare(request: web.Request) -> web.Response:
    """Measures of one clip against another one, frame by frame."""
    studio = get_studio(request)
    body = parse_model(CompareBody, await read_object(request))
    paths = [
        await asyncio.to_thread(studio.gallery.clip, side.run, side.clip)
        for side in (body.a, body.b)
    ]
    return web.json_response(await studio.media.comparison(*paths))


async def get_export(request: web.Request) -> web.Response:
    """The request of a run as a file: a ComfyUI workflow, TOML or JSON."""
    check_query(request.query, ("as", "clip"))
    studio, run = get_studio(request), _run_id(request)
    form = request.query.get("as", "comfyui")
    if form not in EXPORTS:
        raise RequestError(f"as={form[:30]!r} is unknown", f"use {', '.join(EXPORTS)}")
    clip = request.query.get("clip", "")
    number = int(clip) if clip.isascii() and clip.isdigit() and len(clip) < 6 else 0
    text, suffix = await studio.planner.call(export_run, studio.place, run, number, form)
    name = f"{run}{f'-{number}' if number else ''}{suffix}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    kind = "application/toml" if suffix == ".toml" else "application/json"
    return web.Response(text=text, content_type=kind, headers=headers)


def export_run(place: Any, run: str, number: int, form: str) -> tuple[str, str]:
    """Text and suffix of an export; runs in the planner's process."""
    from latent_ladder.comfyui.conversion import export_workflow
    from latent_ladder.comfyui.exporter.file_names import file_names_for
    from latent_ladder.drafts.selection import choose
    from latent_ladder.request.model import Request

    record = place.store.runs.find(run)
    if record.kind == "workflow":
        return json.dumps(record.request["workflow"], indent=1), ".json"
    named = f"{record.id}:{number}" if number and record.drafts else record.id
    is_open = bool(record.drafts) and not number
    request = Request.from_dict(record.request) if is_open else choose(place.store, named).request
    if form == "toml":
        return request.to_toml(), ".toml"
    if form == "json":
        return json.dumps(request.to_dict(), indent=1, ensure_ascii=False), ".json"
    files = file_names_for(request, place.folders)
    document = export_workflow(request, files, "ui" if form == "comfyui" else "api")
    return json.dumps(document, indent=1, ensure_ascii=False), ".json"
