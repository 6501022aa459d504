"""All routes of ``/ladder`` in one table."""

from __future__ import annotations

from aiohttp import web

from latent_ladder.jobs.job_body import JobBody
from latent_ladder.server.ladder_api import answers as a
from latent_ladder.server.ladder_api import (
    graph_routes,
    job_routes,
    model_routes,
    openapi,
    run_routes,
    state_routes,
    upload_routes,
)
from latent_ladder.server.ladder_api import run_answers as r
from latent_ladder.server.ladder_api.api_errors import answering_errors, not_found
from latent_ladder.server.ladder_api.route_spec import FILE, SOCKET, Route

_PROXY = {"download": '1: for "save as"', "proxy": "1: H.264 in MP4, made once"}
_MAKING = {202: a.Making}
_RUN = "/ladder/runs/{id:[0-9a-z]{8}}"
_UPLOAD = "/ladder/uploads/{id}"
_JOB = "/ladder/jobs/{id}"
_CLIP = f"{_RUN}/clips/{{number:[0-9]{{1,6}}}}"


async def get_openapi(_: web.Request) -> web.Response:
    """This document: OpenAPI 3.1 of all routes, generated from the table that serves them."""
    return web.json_response(openapi.build_document(ROUTES))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/ladder/state", state_routes.get_state, "State", a.State),
    Route("GET", "/ladder/events", job_routes.get_events, "State", SOCKET),
    Route("GET", "/ladder/openapi.json", get_openapi, "State", dict),
    Route("GET", "/ladder/presets", state_routes.get_presets, "Requests", list[a.PresetRow]),
    Route("GET", "/ladder/presets/{name}", state_routes.get_preset, "Requests", a.PresetDocument),
    Route(
        "PUT", "/ladder/presets/{name}", state_routes.put_preset, "Requests", a.PresetDocument,
        a.PresetBody,
    ),
    Route("DELETE", "/ladder/presets/{name}", state_routes.delete_preset, "Requests", a.Done),
    Route("GET", "/ladder/fields", state_routes.get_fields, "Requests", list[a.FieldRow]),
    Route("POST", "/ladder/plan", state_routes.post_plan, "Requests", a.Plan, a.PlanBody),
    Route(
        "GET", "/ladder/jobs", job_routes.get_jobs, "Jobs", a.JobList,
        query={"state": "States, with commas.", "limit": "Ended jobs of a page.",
               "before": "Cursor: `next` of the page before."},
    ),
    Route(
        "POST", "/ladder/jobs", job_routes.post_job, "Jobs", a.JobAnswer, JobBody, 201,
        also={200: a.JobAnswer},
    ),
    Route("GET", _JOB, job_routes.get_job, "Jobs", a.JobAnswer),
    Route("DELETE", _JOB, job_routes.delete_job, "Jobs", a.Done),
    Route("POST", f"{_JOB}/cancel", job_routes.post_cancel, "Jobs", a.JobAnswer),
    Route("POST", f"{_JOB}/pause", job_routes.post_pause, "Jobs", a.JobAnswer),
    Route("POST", f"{_JOB}/resume", job_routes.post_resume, "Jobs", a.JobAnswer),
    Route("POST", f"{_JOB}/retry", job_routes.post_retry, "Jobs", a.JobAnswer),
    Route("POST", f"{_JOB}/move", job_routes.post_move, "Jobs", a.JobAnswer, a.MoveBody),
    Route(
        "POST", f"{_JOB}/clips/{{number:[0-9]{{1,6}}}}/cancel", job_routes.post_cancel_clip, "Jobs",
        a.JobAnswer,
    ),
    Route(
        "GET", f"{_JOB}/preview", job_routes.get_preview, "Jobs", FILE,
        query={"clip": "Number of a clip; 0: of the job.", "stage": "Only makes the address new.",
               "step": "Only makes the address new."},
    ),
    Route("POST", "/ladder/queue/pause", job_routes.post_pause_queue, "Jobs", a.Queue),
    Route("POST", "/ladder/queue/resume", job_routes.post_resume_queue, "Jobs", a.Queue),
    Route(
        "GET", "/ladder/runs", run_routes.get_runs, "Runs", r.RunList,
        query={"text": "Words of the prompt.", "preset": "A preset.", "seed": "A seed.",
               "kind": "make, drafts, refine, sweep, upscale, sound or workflow.",
               "since": "ISO 8601.", "until": "ISO 8601.", "starred": "1: only with a star.",
               "limit": "Runs of a page.", "cursor": "`next` of the page before."},
    ),
    Route("GET", _RUN, run_routes.get_run, "Runs", r.RunDetail),
    Route("DELETE", _RUN, run_routes.delete_run, "Runs", r.Deletion),
    Route("GET", f"{_RUN}/deletion", run_routes.get_deletion, "Runs", r.Deletion),
    Route("POST", f"{_RUN}/star", run_routes.post_star, "Runs", r.RunDetail, r.StarBody),
    Route(
        "GET", f"{_RUN}/export", run_routes.get_export, "Runs", FILE,
        query={"as": "comfyui, comfyui-api, toml or json.", "clip": "Number of a draft."},
    ),
    Route(
        "GET", f"{_RUN}/files/{{name}}", run_routes.get_file, "Runs", FILE, query=_PROXY,
        also=_MAKING,
    ),
    Route("GET", f"{_CLIP}/video", run_routes.get_clip, "Runs", FILE, query=_PROXY, also=_MAKING),
    Route("GET", f"{_CLIP}/thumbnail", run_routes.get_thumbnail, "Runs", FILE),
    Route("GET", f"{_RUN}/sweep", run_routes.get_sweep, "Runs", r.SweepReport),
    Route(
        "POST", f"{_RUN}/sweep/apply", run_routes.post_apply, "Runs", r.RequestAnswer, r.ApplyBody
    ),
    Route(
        "POST", "/ladder/compare", run_routes.post_compare, "Runs", r.Comparison, r.CompareBody
    ),
    Route(
        "POST", "/ladder/uploads", upload_routes.post_upload, "Uploads", a.Upload, status=201,
        form=True,
    ),
    Route("GET", _UPLOAD, upload_routes.get_upload, "Uploads", a.Upload),
    Route("DELETE", _UPLOAD, upload_routes.delete_upload, "Uploads", a.Done),
    Route(
        "GET", f"{_UPLOAD}/file", upload_routes.get_upload_file, "Uploads", FILE, query=_PROXY,
        also=_MAKING,
    ),
    Route("GET", f"{_UPLOAD}/thumbnail", upload_routes.get_upload_thumbnail, "Uploads", FILE),
    Route(
        "GET", f"{_UPLOAD}/waveform", upload_routes.get_waveform, "Uploads", a.Waveform,
        query={"points": "Number of parts, 1 to 4000."},
    ),
    Route(
        "GET", "/ladder/models", model_routes.get_models, "Models", a.Models,
        query={"fresh": "1: read the model folders now."},
    ),
    Route(
        "POST", "/ladder/graphs/inspect", graph_routes.post_inspect, "Graphs", a.GraphReport,
        a.GraphBody,
    ),
    Route("GET", "/ladder/graphs", graph_routes.get_graphs, "Graphs", list[a.SavedGraph]),
)  # fmt: skip


async def get_nothing(request: web.Request) -> web.StreamResponse:
    """The answer to an address of the API that does not exist."""
    hint = "GET /ladder/openapi.json lists all routes"
    raise not_found(f"route {request.method} {request.path[:200]}", hint)


def definitions() -> tuple[web.RouteDef, ...]:
    """The routes for aiohttp; last, an answer for all other addresses."""
    rest = web.route("*", "/ladder/{rest:.*}", answering_errors(get_nothing))
    return (*(route.definition() for route in ROUTES), rest)
