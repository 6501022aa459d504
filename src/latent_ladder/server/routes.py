"""ComfyUI's routes: each reads a request, asks the part that knows, and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.errors import RequestError
from latent_ladder.server import object_info, upload, view
from latent_ladder.server import system_info as about
from latent_ladder.server.app_context import context, ids_of, read_object, whole
from latent_ladder.server.client_messages import summary_of
from latent_ladder.server.file_listing import FOLDERS, Glance
from latent_ladder.server.prompt_requests import Refused, read_prompt

JOB_STATES = ("pending", "in_progress", "completed", "failed", "cancelled")


# --- prompts, queue, history ----------------------------------------------------------------------


async def post_prompt(request: web.Request) -> web.Response:
    """Check a prompt and queue it."""
    here = context(request)
    body = await read_object(request)
    try:
        asked = await asyncio.to_thread(read_prompt, body, here.listing)
        job = asked.job(here.jobs.kept.next_number)
    except Refused as refused:
        return web.json_response(refused.body, status=400)
    if not here.jobs.add(job):
        raise RequestError(f"prompt_id {job.id!r} is queued already", "use another, or none")
    return web.json_response(
        {"prompt_id": job.id, "number": job.number, "node_errors": asked.node_errors}
    )


async def get_prompt(request: web.Request) -> web.Response:
    """How many jobs wait."""
    remaining = context(request).jobs.kept.count()
    return web.json_response({"exec_info": {"queue_remaining": remaining}})


async def get_queue(request: web.Request) -> web.Response:
    """The job under way and those that wait."""
    jobs = context(request).jobs
    running = jobs.running
    waiting = [job.item() for job in jobs.kept.pending() if running is None or job.id != running.id]
    return web.json_response(
        {"queue_running": [running.item()] if running else [], "queue_pending": waiting}
    )


async def post_queue(request: web.Request) -> web.Response:
    """Take jobs out of the queue."""
    body = await read_object(request)
    context(request).jobs.drop(ids_of(body))
    return web.Response()


async def get_history(request: web.Request) -> web.Response:
    """Finished jobs."""
    most, offset = whole(request, "max_items"), whole(request, "offset")
    kept = context(request).jobs.kept
    return web.json_response(kept.history(most, -1 if offset is None else offset))


async def get_history_entry(request: web.Request) -> web.Response:
    """One finished job; an empty object while it is not."""
    job_id = request.match_info["id"]
    entry = context(request).jobs.kept.entry(job_id)
    return web.json_response({} if entry is None else {job_id: entry})


async def post_history(request: web.Request) -> web.Response:
    """Forget finished jobs."""
    body = await read_object(request)
    context(request).jobs.kept.forget(ids_of(body))
    return web.Response()


async def post_interrupt(request: web.Request) -> web.Response:
    """Stop the job under way, or the one that is named if it is that."""
    body = await read_object(request, may_be_empty=True)
    job_id = body.get("prompt_id")
    context(request).jobs.interrupt(None if job_id is None else str(job_id))
    return web.Response()


async def post_free(request: web.Request) -> web.Response:
    """Give memory back; either flag ends the worker process, which gives back all."""
    body = await read_object(request, may_be_empty=True)
    if body.get("unload_models") or body.get("free_memory"):
        context(request).jobs.free()
    return web.Response()


# --- jobs -----------------------------------------------------------------------------------------


async def get_jobs(request: web.Request) -> web.Response:
    """Jobs of all states, newest first, in pages."""
    query = request.query
    wanted = {state for state in query.get("status", "").split(",") if state}
    if not wanted <= set(JOB_STATES):
        raise RequestError(f"status={query['status'][:60]!r} is unknown", ", ".join(JOB_STATES))
    found = [job for job in _all_jobs(request) if not wanted or job["status"] in wanted]
    workflow = query.get("workflow_id")
    found = [job for job in found if workflow is None or job["workflow_id"] == workflow]
    found.sort(key=lambda job: job["create_time"], reverse=query.get("sort_order") != "asc")
    offset, limit = whole(request, "offset") or 0, whole(request, "limit")
    offset, most = max(offset, 0), len(found) if limit is None else max(limit, 0)
    page = found[offset : offset + most]
    about_pages = {
        "offset": offset,
        "limit": limit,
        "total": len(found),
        "has_more": offset + len(page) < len(found),
    }
    return web.json_response({"jobs": page, "pagination": about_pages})


async def get_job(request: web.Request) -> web.Response:
    """One job with its prompt and what came out."""
    job_id = request.match_info["id"]
    found = next((job for job in _all_jobs(request) if job["id"] == job_id), None)
    if found is None:
        return web.json_response({"error": "no such job"}, status=404)
    kept = context(request).jobs.kept
    entry = kept.entry(job_id)
    items = (job.item() for job in kept.pending() if job.id == job_id)
    prompt = entry["prompt"] if entry is not None else next(items, None)
    more: dict[str, Any] = {}
    if prompt is not None:
        more["workflow"] = {"prompt": prompt[2], "extra_data": prompt[3]}
    if entry is not None:
        more |= {"outputs": entry["outputs"], "execution_status": entry["status"]}
    return web.json_response(found | more)


def _all_jobs(request: web.Request) -> Iterator[dict[str, Any]]:
    jobs = context(request).jobs
    running = jobs.running
    for job in jobs.kept.pending():
        now = running is not None and job.id == running.id
        yield summary_of(job, "in_progress" if now else "pending")
    yield from jobs.kept.summaries()


# --- files ----------------------------------------------------------------------------------------


async def get_view(request: web.Request) -> web.StreamResponse:
    """A result or an upload."""
    return await view.view(request, context(request).setup.places)


async def post_image(request: web.Request) -> web.Response:
    """A picture, a video or a sound to work from."""
    setup = context(request).setup
    return await upload.upload_image(request, setup.places, setup.limits.upload)


async def post_mask(request: web.Request) -> web.Response:
    """A mask for a picture that is here."""
    setup = context(request).setup
    return await upload.upload_mask(request, setup.places, setup.limits.upload)


# --- what there is --------------------------------------------------------------------------------


async def get_object_info(request: web.Request) -> web.Response:
    """All node types."""
    names = Glance(context(request).listing).names
    return web.json_response(await asyncio.to_thread(object_info.object_info, names))


async def get_node_info(request: web.Request) -> web.Response:
    """One node type; an empty object where it does not run here."""
    row = NODE_TYPES.get(request.match_info["name"])
    if row is None or not object_info.is_listed(row):
        return web.json_response({})
    names = context(request).listing.names
    info = await asyncio.to_thread(object_info.node_info, row, names)
    return web.json_response({row.class_type: info})


async def get_models(_: web.Request) -> web.Response:
    """The folders of models."""
    return web.json_response(list(FOLDERS))


async def get_model_names(request: web.Request) -> web.Response:
    """The files of one folder."""
    folder = request.match_info["folder"]
    if folder not in FOLDERS:
        raise web.HTTPNotFound(text="no such folder of models")
    return web.json_response(await asyncio.to_thread(context(request).listing.names, folder))


async def get_embeddings(request: web.Request) -> web.Response:
    """Names of textual inversions, without suffix."""
    names = context(request).listing.names("embeddings")
    return web.json_response([name.rpartition(".")[0] for name in names])


async def get_file_metadata(request: web.Request) -> web.Response:
    """The metadata in the header of a model file."""
    folder, name = request.match_info["folder"], request.query.get("filename", "")
    found = await asyncio.to_thread(context(request).listing.find, folder, name)
    metadata = None if found is None else await asyncio.to_thread(about.file_metadata, found)
    if metadata is None:
        raise web.HTTPNotFound(text="no such file, or it has no metadata")
    return web.json_response(metadata)


async def get_system_stats(request: web.Request) -> web.Response:
    """The machine."""
    device = context(request).setup.device
    return web.json_response(await asyncio.to_thread(about.system_stats, device))


async def get_features(request: web.Request) -> web.Response:
    """What this server can do."""
    return web.json_response(about.features(context(request).setup.limits.upload))


async def get_nothing(_: web.Request) -> web.Response:
    """Lists that are empty here: extensions of the editor."""
    return web.json_response([])


async def get_settings(_: web.Request) -> web.Response:
    """Settings of the editor, of which there is none."""
    return web.json_response({})


async def get_users(_: web.Request) -> web.Response:
    """One user, who needs no name."""
    return web.json_response({"storage": "server", "migrated": True})


async def get_page(_: web.Request) -> web.Response:
    """What this is."""
    return web.Response(text=about.page(), content_type="text/html")


async def get_socket(request: web.Request) -> web.WebSocketResponse:
    """Messages while jobs run."""
    here = context(request)
    return await here.sockets.serve(request, here.jobs.greeting)


ROUTES = (
    web.get("/", get_page),
    web.get("/ws", get_socket),
    web.post("/prompt", post_prompt),
    web.get("/prompt", get_prompt),
    web.get("/queue", get_queue),
    web.post("/queue", post_queue),
    web.get("/history", get_history),
    web.get("/history/{id}", get_history_entry),
    web.post("/history", post_history),
    web.post("/interrupt", post_interrupt),
    web.post("/free", post_free),
    web.get("/jobs", get_jobs),
    web.get("/jobs/{id}", get_job),
    web.get("/view", get_view),
    web.post("/upload/image", post_image),
    web.post("/upload/mask", post_mask),
    web.get("/object_info", get_object_info),
    web.get("/object_info/{name}", get_node_info),
    web.get("/models", get_models),
    web.get("/models/{folder}", get_model_names),
    web.get("/embeddings", get_embeddings),
    web.get("/view_metadata/{folder}", get_file_metadata),
    web.get("/system_stats", get_system_stats),
    web.get("/features", get_features),
    web.get("/extensions", get_nothing),
    web.get("/settings", get_settings),
    web.get("/users", get_users),
)
"""Each is there a second time under ``/api``."""
