"""Jobs: create, list, order, pause, cancel, retry; and the events of all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.jobs.job_body import parse_body, parse_model
from latent_ladder.jobs.planning import check_job
from latent_ladder.server.app_context import read_object
from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.job_store import GRAPH, REQUEST, Job
from latent_ladder.server.ladder_api.answers import MoveBody
from latent_ladder.server.ladder_api.api_errors import ApiError, check_query, conflict, not_found
from latent_ladder.server.ladder_api.graph_documents import with_inputs
from latent_ladder.server.ladder_api.state_routes import resolve_body
from latent_ladder.server.ladder_api.studio_context import Studio, get_studio
from latent_ladder.server.prompt_requests import PromptError, read_prompt

MOST_JOBS, JOBS_PER_PAGE = 500, 50
MAX_QUEUED = 1000
"""Unfinished jobs; more are refused."""
STATES = ("queued", "running", "paused", "done", "failed", "cancelled")
LONGEST_KEY = 200


async def get_events(request: web.Request) -> web.StreamResponse:
    """The WebSocket of events; a page that opens it gets the whole state first."""
    return await get_studio(request).hub.serve(request)


async def get_jobs(request: web.Request) -> web.Response:
    """The unfinished jobs in their order, then the ended ones, the newest first, in pages."""
    check_query(request.query, ("state", "limit", "before"))
    studio, query = get_studio(request), request.query
    states = {each for each in query.get("state", "").split(",") if each}
    if not states <= set(STATES):
        raise RequestError(f"state={query['state'][:60]!r} is unknown", f"use {', '.join(STATES)}")
    limit, before = read_limit(request, JOBS_PER_PAGE, MOST_JOBS), query.get("before")
    found = [] if before else list(studio.documents.queued())
    ended = studio.documents.ended(limit, before)
    jobs = [job for job in (*found, *ended) if not states or job["state"] in states]
    following = ended[-1]["id"] if len(ended) == limit else None
    return web.json_response({"jobs": jobs, "next": following})


def read_limit(request: web.Request, default: int, most: int) -> int:
    """The parameter ``limit``. Raises :class:`RequestError`."""
    text = request.query.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise RequestError(f"limit={text[:20]!r} is not 1 to {most}", f"use limit={default}")
    return int(text)


async def post_job(request: web.Request) -> web.Response:
    """Check a job and queue it. With the header Idempotency-Key, only once for each key."""
    studio = get_studio(request)
    store = studio.context.jobs.store
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > LONGEST_KEY:
        raise RequestError(f"Idempotency-Key has {len(key)} characters", f"use {LONGEST_KEY}")
    body = await read_object(request)
    if key and (earlier := store.job_of_key(f"ladder:{key}")) is not None:
        return _answer(studio, earlier, 200)
    if store.count(None) >= MAX_QUEUED:
        raise ApiError(429, "queue_full", f"{MAX_QUEUED} jobs are waiting", "wait, or cancel some")
    job = await _check(studio, body)
    if key and not store.use_key(f"ladder:{key}", job.id):
        return _answer(studio, store.job_of_key(f"ladder:{key}") or "", 200)
    studio.context.jobs.add(job)
    return _answer(studio, job.id, 201)


async def _check(studio: Studio, body: dict[str, Any]) -> Job:
    """The job of a body. Raises a :class:`LadderError` with everything that is wrong."""
    jobs = studio.context.jobs
    if body.get("kind") == GRAPH:
        parsed = parse_body(body)
        graph = with_inputs(parsed.graph, parsed.inputs)
        try:
            prompt = await asyncio.to_thread(read_prompt, {"prompt": graph}, studio.context.listing)
        except PromptError as error:
            raise graph_error(error) from error
        return prompt.to_job(jobs.store.next_number)
    parse_body(body)  # unknown fields are refused before files are looked for
    data = await resolve_body(studio, body)
    checked = await studio.planner.call(check_job, data, studio.place)
    extra = {REQUEST: checked, "create_time": int(time.time() * 1000)}
    number = jobs.store.next_number()
    return Job(number, uuid4().hex, {}, extra, (), str(body["kind"]))


def graph_error(error: PromptError) -> RequestError:
    """The problems of a graph, one for each node."""
    found = error.body
    problems: list[tuple[str, str | None]] = []
    for node, each in found.get("node_errors", {}).items():
        for problem in each.get("errors", ()):
            where = f"node {node} ({each.get('class_type', '')})"
            text = f"{where}: {problem.get('message')}"
            problems.append((f"{text}: {problem.get('details')}", None))
    main = found["error"]
    details = f": {main['details']}" if main.get("details") else ""
    message = f"{main['message']}{details}"
    return RequestError(message, "mend the workflow in ComfyUI", tuple(problems))


def _answer(studio: Studio, job_id: str, status: int = 200) -> web.Response:
    document = studio.documents.find(job_id)
    if document is None:
        raise not_found(f"job {job_id[:60]!r}", "GET /ladder/jobs lists them")
    return web.json_response({"job": document}, status=status)


async def get_job(request: web.Request) -> web.Response:
    """One job."""
    return _answer(get_studio(request), request.match_info["id"])


async def delete_job(request: web.Request) -> web.Response:
    """Forget an ended job; its run and its files stay."""
    studio, job_id = get_studio(request), request.match_info["id"]
    jobs = studio.context.jobs
    if jobs.store.queued_job(job_id) is not None:
        raise conflict(f"job {job_id} has not ended", "cancel it first")
    if jobs.store.find_finished(job_id) is None:
        raise not_found(f"job {job_id[:60]!r}")
    jobs.delete(job_id)
    return web.json_response({"done": True})


def _change(request: web.Request, change: Callable[[JobLoop, str], bool]) -> web.Response:
    """Change an unfinished job; the answer has the job."""
    studio, job_id = get_studio(request), request.match_info["id"]
    _check_unfinished(studio, job_id)
    change(studio.context.jobs, job_id)
    return _answer(studio, job_id)


async def post_cancel(request: web.Request) -> web.Response:
    """Cancel a job: a waiting one at once, the running one after its step."""
    return _change(request, JobLoop.cancel)


async def post_pause(request: web.Request) -> web.Response:
    """Pause a job; stages that are done stay stored and are reused."""
    return _change(request, JobLoop.pause)


async def post_resume(request: web.Request) -> web.Response:
    """Let a paused job run when its turn comes."""
    return _change(request, JobLoop.resume)


async def post_retry(request: web.Request) -> web.Response:
    """Queue a job that failed or was cancelled again, under its id; stored stages are reused."""
    studio, job_id = get_studio(request), request.match_info["id"]
    jobs = studio.context.jobs
    found = jobs.store.find_finished(job_id)
    if found is None:
        if jobs.store.queued_job(job_id) is not None:
            raise conflict(f"job {job_id} has not ended", "wait for its end")
        raise not_found(f"job {job_id[:60]!r}")
    job = retried(found.entry, found.kind, job_id, jobs.store.next_number())
    jobs.store.delete_history([job_id])
    jobs.add(job)
    return _answer(studio, job_id)


def retried(entry: Any, kind: str, job_id: str, number: float) -> Job:
    """The job of a history entry, to run it again with all of its clips."""
    if kind == GRAPH:
        _, _, prompt, extra, outputs = entry["prompt"]
        return Job(number, job_id, prompt, extra, tuple(outputs))
    checked = entry["extra"][REQUEST]
    body = {name: value for name, value in checked["body"].items() if name != "killed"}
    extra = {**entry["extra"], REQUEST: {**checked, "body": body}}
    return Job(number, job_id, {}, extra, (), kind)


async def post_move(request: web.Request) -> web.Response:
    """Put a waiting job before another one, or at the end."""
    studio, job_id = get_studio(request), request.match_info["id"]
    body = parse_model(MoveBody, await read_object(request, may_be_empty=True))
    _check_unfinished(studio, job_id)
    if not studio.context.jobs.move(job_id, body.before):
        raise conflict("only jobs that wait can be moved", "name two waiting jobs")
    return _answer(studio, job_id)


async def post_cancel_clip(request: web.Request) -> web.Response:
    """Stop one clip of a job, such as a bad draft; the others go on."""
    studio, job_id = get_studio(request), request.match_info["id"]
    _check_unfinished(studio, job_id)
    job = studio.context.jobs.store.queued_job(job_id)
    number = int(request.match_info["number"])
    numbers = [] if job is None else [c["number"] for c in job.checked.get("clips", ())]
    if number not in numbers or (job is not None and job.kind == "sweep"):
        raise not_found(f"clip {number} of job {job_id} that can be stopped")
    studio.context.jobs.stop_part(job_id, number)
    return _answer(studio, job_id)


async def get_preview(request: web.Request) -> web.Response:
    """The newest preview (PNG) of the running job, or of one of its clips."""
    check_query(request.query, ("clip", "stage", "step"))
    clip = request.query.get("clip", "0")
    number = int(clip) if clip.isascii() and clip.isdigit() and len(clip) < 6 else 0
    studio = get_studio(request)
    picture = studio.documents.preview(request.match_info["id"], number)
    if picture is None:
        raise not_found("preview of this job", "previews exist while a job runs")
    headers = {"Cache-Control": "no-store"}
    kind = "image/png" if picture.startswith(b"\x89PNG") or clip != "0" else "image/jpeg"
    return web.Response(body=picture, content_type=kind, headers=headers)


async def post_pause_queue(request: web.Request) -> web.Response:
    """Start no further job; the running one goes on."""
    return _pause_queue(request, True)


async def post_resume_queue(request: web.Request) -> web.Response:
    """Start jobs again."""
    return _pause_queue(request, False)


def _pause_queue(request: web.Request, paused: bool) -> web.Response:
    studio = get_studio(request)
    studio.context.jobs.pause_queue(paused)
    return web.json_response(studio.documents.queue())


def _check_unfinished(studio: Studio, job_id: str) -> None:
    store = studio.context.jobs.store
    if store.queued_job(job_id) is not None:
        return
    if store.find_finished(job_id) is None:
        raise not_found(f"job {job_id[:60]!r}", "GET /ladder/jobs lists them")
    raise conflict(f"job {job_id} has ended", "retry it, or make a new one")
