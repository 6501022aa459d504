"""The Comfy API v2 (``/api/v2``), which the Python package comfy-sdk and others speak.

Jobs are those of the queue, whichever interface they came from.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.server import comfy_v2_assets
from latent_ladder.server.app_context import (
    Context,
    get_context,
    read_object,
    read_query_integer,
)
from latent_ladder.server.client_messages import OWN_EXTRA
from latent_ladder.server.comfy_v2_assets import resolve_assets
from latent_ladder.server.comfy_v2_jobs import (
    STATES,
    STATUSES,
    describe_job,
    describe_summary,
    stream_events,
)
from latent_ladder.server.job_routes import all_jobs
from latent_ladder.server.prompt_requests import PromptError, read_prompt
from latent_ladder.server.request_errors import error_response

MAX_STREAMS = 100
MAX_LABELS, MAX_LABEL = 16, 500
MAX_PRIORITY = 1000
MAX_KEY = 255
DEFAULT_PAGE, MAX_PAGE = 20, 100
_PRIORITY_STEP = 1_000_000
"""Places in the queue that one unit of priority skips."""


# --- submission -----------------------------------------------------------------------------------


async def post_job(request: web.Request) -> web.Response:
    """Queue a workflow in the API format; assets in it are references to uploads or results."""
    context, body = get_context(request), await read_object(request)
    refusal = _check_body(body)
    if refusal is not None:
        return refusal
    missing: list[str] = []
    workflow = resolve_assets(body["workflow"], context, missing)
    if missing:
        return error_response(422, "missing_asset", f"no such assets: {', '.join(missing)}")
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 0 < len(key) <= MAX_KEY:
        return error_response(400, "invalid_request", "Idempotency-Key has not 1 to 255 characters")
    job_id = str(uuid4())
    if key is not None and not context.jobs.store.use_key(key, job_id):
        return error_response(
            422, "idempotency_key_reuse", "this Idempotency-Key was used before", "list the jobs"
        )
    try:
        await _queue(context, job_id, workflow, body)
    except PromptError as error:
        if key is not None:
            context.jobs.store.release_key(key)
        return _refuse_workflow(error)
    return web.json_response(describe_job(context, job_id, _base(request)), status=201)


def _check_body(body: Mapping[str, Any]) -> web.Response | None:
    """The refusal of a body, or ``None``."""
    workflow = body.get("workflow")
    if not isinstance(workflow, Mapping):
        return error_response(422, "invalid_workflow", "there is no `workflow` in the API format")
    if isinstance(workflow.get("nodes"), list) and "links" in workflow:
        return error_response(
            422, "workflow_format_ui", "the workflow is in the UI format", "export it for the API"
        )
    if body.get("webhook_url") is not None or body.get("inputs") is not None:
        return error_response(422, "invalid_workflow", "webhook_url and inputs are not supported")
    labels, priority = body.get("metadata"), body.get("priority")
    if labels is not None and not _are_labels(labels):
        text = f"metadata is not an object of up to {MAX_LABELS} short texts"
        return error_response(422, "metadata_invalid", text)
    if priority is not None and (
        isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MAX_PRIORITY
    ):
        text = f"priority is not an integer from -{MAX_PRIORITY} to {MAX_PRIORITY}"
        return error_response(422, "invalid_request", text)
    return None


def _are_labels(labels: object) -> bool:
    if not isinstance(labels, Mapping) or len(labels) > MAX_LABELS:
        return False
    texts = (*labels, *labels.values())
    return all(isinstance(text, str) and len(text) <= MAX_LABEL for text in texts)


async def _queue(
    context: Context, job_id: str, workflow: Mapping[str, Any], body: Mapping[str, Any]
) -> None:
    """Queue a checked body. Raises :class:`PromptError`."""
    priority: int | None = body.get("priority")
    own = {"metadata": body.get("metadata") or {}, "priority": priority}
    prompt_body: dict[str, Any] = {
        "prompt": workflow,
        "prompt_id": job_id,
        "client_id": job_id,
        "extra_data": {OWN_EXTRA: own},
    }
    prompt = await asyncio.to_thread(read_prompt, prompt_body, context.listing)
    if prompt.node_errors:
        error = {"message": "some outputs have problems", "type": "invalid_workflow"}
        raise PromptError(error, prompt.node_errors)
    job = prompt.to_job(context.jobs.store.next_number)
    context.jobs.add(job.with_number(job.number - (priority or 0) * _PRIORITY_STEP))


def _refuse_workflow(error: PromptError) -> web.Response:
    about = error.body["error"]
    details = {"node_errors": error.body["node_errors"], "hint": about.get("details", "")}
    body = {"code": "invalid_workflow", "message": about["message"], "details": details}
    return web.json_response({"error": body}, status=422)


# --- jobs -----------------------------------------------------------------------------------------


async def get_jobs(request: web.Request) -> web.Response:
    """Jobs, the newest first, in pages; filters are ``status`` and ``metadata[label]``."""
    context, query = get_context(request), request.query
    wanted = {status.strip() for status in query.get("status", "").split(",") if status.strip()}
    if not wanted <= set(STATUSES):
        raise RequestError(f"status={query['status'][:60]!a} is unknown", ", ".join(STATUSES))
    limit = read_query_integer(request, "limit")
    limit = DEFAULT_PAGE if limit is None else limit
    if not 1 <= limit <= MAX_PAGE:
        raise RequestError(f"limit={limit} is out of range", f"use 1 to {MAX_PAGE}")
    labels = {
        key.removeprefix("metadata[").removesuffix("]"): value
        for key, value in query.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    jobs = [job for job in all_jobs(context.jobs) if _matches(job, wanted, labels)]
    jobs.sort(key=lambda job: (job["create_time"], job["id"]), reverse=True)
    start = _read_cursor(query.get("cursor", ""), jobs)
    page, more = jobs[start : start + limit], start + limit < len(jobs)
    return web.json_response(
        {
            "jobs": [describe_summary(context, job, _base(request)) for job in page],
            "next_cursor": _make_cursor(page[-1]) if more else None,
            "truncated": False,
        }
    )


def _matches(job: Mapping[str, Any], wanted: set[str], labels: Mapping[str, str]) -> bool:
    own = (job.get(OWN_EXTRA) or {}).get("metadata") or {}
    has_status = not wanted or STATES[job["status"]] in wanted
    return has_status and all(own.get(key) == value for key, value in labels.items())


def _make_cursor(job: Mapping[str, Any]) -> str:
    text = f"{job['create_time']} {job['id']}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_cursor(cursor: str, jobs: list[dict[str, Any]]) -> int:
    """Index of the first job after the one that the cursor names, even if that one is gone."""
    if not cursor:
        return 0
    try:
        time, _, job_id = base64.b64decode(cursor, b"-_", validate=True).decode().partition(" ")
        last = (int(time), job_id)
    except (binascii.Error, ValueError) as error:
        raise RequestError("the cursor is not one of this server", "leave it out") from error
    older = (i for i, job in enumerate(jobs) if (job["create_time"], job["id"]) < last)
    return next(older, len(jobs))


async def get_job(request: web.Request) -> web.Response:
    """One job."""
    job = describe_job(get_context(request), request.match_info["id"], _base(request))
    return _unknown_job() if job is None else web.json_response(job)


async def get_workflow(request: web.Request) -> web.Response:
    """The workflow of a job, as it ran."""
    store, job_id = get_context(request).jobs.store, request.match_info["id"]
    pending, entry = store.pending_job(job_id), store.entry(job_id)
    if pending is None and entry is None:
        return _unknown_job()
    workflow = entry["prompt"][2] if pending is None and entry is not None else None
    workflow = pending.prompt if pending is not None else workflow
    return web.json_response({"workflow": workflow, "format": "api"})


async def post_cancel(request: web.Request) -> web.Response:
    """Stop a job; one that has ended stays as it is."""
    context, job_id = get_context(request), request.match_info["id"]
    if not context.jobs.is_stopping(job_id):
        context.jobs.cancel(job_id)
    return await get_job(request)


async def get_events(request: web.Request) -> web.StreamResponse:
    """Server-sent events of a job until it ends."""
    context, job_id = get_context(request), request.match_info["id"]
    if describe_job(context, job_id, _base(request)) is None:
        return _unknown_job()
    if context.open_streams >= MAX_STREAMS:
        answer = error_response(429, "too_many_streams", f"more than {MAX_STREAMS} streams")
        answer.headers["Retry-After"] = "5"
        return answer
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers={**headers, "X-Accel-Buffering": "no"})
    with context.count_stream(), suppress(ConnectionError):
        await response.prepare(request)
        async for frame in stream_events(context, job_id, _base(request)):
            await response.write(frame)
        await response.write_eof()
    return response


def _unknown_job() -> web.Response:
    return error_response(404, "not_found", "no such job")


def _base(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"


ROUTES = (
    web.post("/api/v2/jobs", post_job),
    web.get("/api/v2/jobs", get_jobs),
    web.get("/api/v2/jobs/{id}", get_job),
    web.get("/api/v2/jobs/{id}/workflow", get_workflow),
    web.get("/api/v2/jobs/{id}/events", get_events),
    web.post("/api/v2/jobs/{id}/cancel", post_cancel),
    *comfy_v2_assets.ROUTES,
)
