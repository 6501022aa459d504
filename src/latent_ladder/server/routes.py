"""ComfyUI's routes: each reads a request, calls the module for it, and answers."""

from __future__ import annotations

import asyncio

from aiohttp import web

from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.errors import RequestError
from latent_ladder.server import object_info, system_info, upload, view
from latent_ladder.server.app_context import (
    get_context,
    read_deleted_ids,
    read_object,
    read_query_integer,
)
from latent_ladder.server.file_listing import FOLDERS, CachedListing
from latent_ladder.server.prompt_requests import PromptError, read_prompt

# --- prompts, queue, history ----------------------------------------------------------------------


async def post_prompt(request: web.Request) -> web.Response:
    """Check a prompt and queue it."""
    context = get_context(request)
    body = await read_object(request)
    try:
        prompt = await asyncio.to_thread(read_prompt, body, context.listing)
        job = prompt.to_job(context.jobs.store.next_number)
    except PromptError as error:
        return web.json_response(error.body, status=400)
    if not context.jobs.add(job):
        raise RequestError(f"prompt_id {job.id!r} is queued already", "use another one, or none")
    return web.json_response(
        {"prompt_id": job.id, "number": job.number, "node_errors": prompt.node_errors}
    )


async def get_prompt(request: web.Request) -> web.Response:
    """Number of unfinished jobs."""
    remaining = get_context(request).jobs.store.count()
    return web.json_response({"exec_info": {"queue_remaining": remaining}})


async def get_queue(request: web.Request) -> web.Response:
    """The running job and the waiting jobs."""
    jobs = get_context(request).jobs
    running = jobs.running_graph
    pending = jobs.store.pending_jobs()
    waiting = [job.item() for job in pending if running is None or job.id != running.id]
    return web.json_response(
        {"queue_running": [running.item()] if running else [], "queue_pending": waiting}
    )


async def post_queue(request: web.Request) -> web.Response:
    """Remove jobs from the queue."""
    body = await read_object(request)
    get_context(request).jobs.remove(read_deleted_ids(body))
    return web.Response()


async def get_history(request: web.Request) -> web.Response:
    """Finished jobs."""
    max_items = read_query_integer(request, "max_items")
    offset = read_query_integer(request, "offset")
    store = get_context(request).jobs.store
    return web.json_response(store.history(max_items, -1 if offset is None else offset))


async def get_history_entry(request: web.Request) -> web.Response:
    """One finished job; an empty object for a job that is not finished."""
    job_id = request.match_info["id"]
    entry = get_context(request).jobs.store.entry(job_id)
    return web.json_response({} if entry is None else {job_id: entry})


async def post_history(request: web.Request) -> web.Response:
    """Delete finished jobs from the history."""
    body = await read_object(request)
    get_context(request).jobs.store.delete_history(read_deleted_ids(body))
    return web.Response()


async def post_interrupt(request: web.Request) -> web.Response:
    """Stop the running job, or only if it is the one in ``prompt_id``."""
    body = await read_object(request, may_be_empty=True)
    job_id = body.get("prompt_id")
    get_context(request).jobs.interrupt(None if job_id is None else str(job_id))
    return web.Response()


async def post_free(request: web.Request) -> web.Response:
    """Free memory; both flags restart the worker process, which frees all of it."""
    body = await read_object(request, may_be_empty=True)
    if body.get("unload_models") or body.get("free_memory"):
        get_context(request).jobs.free_memory()
    return web.Response()


# --- files ----------------------------------------------------------------------------------------


async def get_view(request: web.Request) -> web.StreamResponse:
    """A result or an uploaded file."""
    return await view.view_file(request, get_context(request).config.folders)


async def post_image(request: web.Request) -> web.Response:
    """Upload a picture, a video or a sound file."""
    config = get_context(request).config
    return await upload.upload_file(request, config.folders, config.limits.upload)


async def post_mask(request: web.Request) -> web.Response:
    """Upload a mask for a stored picture."""
    config = get_context(request).config
    return await upload.upload_mask(request, config.folders, config.limits.upload)


# --- node types, models, machine ------------------------------------------------------------------


async def get_object_info(request: web.Request) -> web.Response:
    """All node types."""
    list_names = CachedListing(get_context(request).listing).names
    return web.json_response(await asyncio.to_thread(object_info.object_info, list_names))


async def get_node_info(request: web.Request) -> web.Response:
    """One node type; an empty object for a type that is not listed."""
    definition = NODE_TYPES.get(request.match_info["name"])
    if definition is None or not object_info.is_listed(definition):
        return web.json_response({})
    list_names = get_context(request).listing.names
    info = await asyncio.to_thread(object_info.node_info, definition, list_names)
    return web.json_response({definition.class_type: info})


async def get_models(_: web.Request) -> web.Response:
    """The folders of models."""
    return web.json_response(list(FOLDERS))


async def get_model_names(request: web.Request) -> web.Response:
    """The files of one folder of models."""
    folder = request.match_info["folder"]
    if folder not in FOLDERS:
        raise web.HTTPNotFound(text="no such folder of models")
    return web.json_response(await asyncio.to_thread(get_context(request).listing.names, folder))


async def get_embeddings(request: web.Request) -> web.Response:
    """Names of textual inversions, without suffix."""
    names = get_context(request).listing.names("embeddings")
    return web.json_response([name.rpartition(".")[0] for name in names])


async def get_file_metadata(request: web.Request) -> web.Response:
    """The metadata in the header of a model file."""
    folder, name = request.match_info["folder"], request.query.get("filename", "")
    path = await asyncio.to_thread(get_context(request).listing.find, folder, name)
    metadata = None
    if path is not None:
        metadata = await asyncio.to_thread(system_info.read_file_metadata, path)
    if metadata is None:
        raise web.HTTPNotFound(text="no such file, or it has no metadata")
    return web.json_response(metadata)


async def get_system_stats(request: web.Request) -> web.Response:
    """Memory and versions of the machine."""
    config = get_context(request).config
    stats = await asyncio.to_thread(system_info.system_stats, config.device, config.convention)
    return web.json_response(stats)


async def get_features(request: web.Request) -> web.Response:
    """Features of this server."""
    limits = get_context(request).config.limits
    return web.json_response(system_info.server_features(limits.upload))


async def get_socket(request: web.Request) -> web.WebSocketResponse:
    """A web socket for messages while jobs run."""
    context = get_context(request)
    return await context.clients.serve(request, context.jobs.initial_messages)


ROUTES = (
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
)
