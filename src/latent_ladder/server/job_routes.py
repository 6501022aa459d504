"""``/jobs``: jobs in all states, one at a time or in pages, and their cancellation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.server.app_context import get_context, read_object, read_query_integer
from latent_ladder.server.client_messages import summarize_job
from latent_ladder.server.job_loop import JobLoop

JOB_STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
SORT_KEYS = ("created_at", "execution_duration")
MAX_CANCELLED = 1000


async def get_jobs(request: web.Request) -> web.Response:
    """Jobs in all states, the newest first, in pages."""
    query = request.query
    states = {state.strip() for state in query.get("status", "").split(",") if state.strip()}
    if not states <= set(JOB_STATES):
        raise RequestError(
            f"status={query['status'][:60]!a} is unknown", f"use {', '.join(JOB_STATES)}"
        )
    jobs = [job for job in all_jobs(get_context(request).jobs) if _matches(job, query, states)]
    _sort(jobs, query.get("sort_by") or "created_at", query.get("sort_order") or "desc")
    offset = max(read_query_integer(request, "offset") or 0, 0)
    limit = read_query_integer(request, "limit")
    page = jobs[offset : offset + (len(jobs) if limit is None else max(limit, 0))]
    pagination = {
        "offset": offset,
        "limit": limit,
        "total": len(jobs),
        "has_more": offset + len(page) < len(jobs),
    }
    return web.json_response({"jobs": page, "pagination": pagination})


def _matches(job: dict[str, Any], query: Any, states: set[str]) -> bool:
    workflow = query.get("workflow_id")
    return (not states or job["status"] in states) and workflow in (None, job["workflow_id"])


def _sort(jobs: list[dict[str, Any]], key: str, order: str) -> None:
    if key not in SORT_KEYS:
        raise RequestError(f"sort_by={key[:40]!a} is unknown", f"use {', '.join(SORT_KEYS)}")
    if order not in ("asc", "desc"):
        raise RequestError(f"sort_order={order[:40]!a} is unknown", "use asc or desc")
    if key == "created_at":
        jobs.sort(key=lambda job: job["create_time"], reverse=order == "desc")
    else:
        jobs.sort(key=_duration_ms, reverse=order == "desc")


def _duration_ms(job: dict[str, Any]) -> int:
    return int(job.get("execution_end_time") or 0) - int(job.get("execution_start_time") or 0)


async def get_job(request: web.Request) -> web.Response:
    """One job with its prompt and its results."""
    job_id, jobs = request.match_info["id"], get_context(request).jobs
    summary = find_job(jobs, job_id)
    if summary is None:
        return _no_such_job()
    entry = jobs.store.entry(job_id)
    pending = jobs.store.pending_job(job_id)
    prompt = entry["prompt"] if entry is not None else None
    prompt = pending.item() if pending is not None else prompt
    details: dict[str, Any] = {}
    if prompt is not None:
        details["workflow"] = {"prompt": prompt[2], "extra_data": prompt[3]}
    if entry is not None:
        details |= {"outputs": entry["outputs"], "execution_status": entry["status"]}
    return web.json_response(summary | details)


async def post_cancel(request: web.Request) -> web.Response:
    """Stop one job: the running one after its step, a waiting one at once."""
    job_id, jobs = request.match_info["id"], get_context(request).jobs
    if jobs.cancel(job_id):
        return web.json_response({"cancelled": True})
    if jobs.store.entry(job_id) is None:
        return _no_such_job()
    return web.json_response({"cancelled": False})


async def post_cancel_several(request: web.Request) -> web.Response:
    """Stop the jobs in ``job_ids``; those that have ended stay as they are."""
    ids = (await read_object(request)).get("job_ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, str) for i in ids):
        raise RequestError("job_ids is not a list of ids", 'send {"job_ids": ["id", ...]}')
    if len(ids) > MAX_CANCELLED:
        raise RequestError(f"job_ids has {len(ids)} ids", f"send at most {MAX_CANCELLED}")
    jobs = get_context(request).jobs
    cancelled = [job_id for job_id in ids if jobs.cancel(job_id)]
    return web.json_response({"cancelled": cancelled})


def all_jobs(jobs: JobLoop) -> Iterator[dict[str, Any]]:
    """Summaries of all jobs: the running one, the waiting ones, the finished ones."""
    for job in jobs.store.pending_jobs():
        yield summarize_job(job, jobs.state_of(job.id))
    yield from jobs.store.summaries()


def find_job(jobs: JobLoop, job_id: str) -> dict[str, Any] | None:
    """Summary of one job."""
    pending = jobs.store.pending_job(job_id)
    if pending is not None:
        return summarize_job(pending, jobs.state_of(job_id))
    return jobs.store.summary(job_id)


def _no_such_job() -> web.Response:
    return web.json_response({"error": "no such job"}, status=404)


ROUTES = (
    web.get("/jobs", get_jobs),
    web.post("/jobs/cancel", post_cancel_several),
    web.get("/jobs/{id}", get_job),
    web.post("/jobs/{id}/cancel", post_cancel),
)
