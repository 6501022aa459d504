"""State of the server, presets, fields of a request, and plans."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from latent_ladder._version import __version__
from latent_ladder.drafts.seeds import MANY
from latent_ladder.errors import RequestError
from latent_ladder.jobs.job_body import is_inside, parse_model, replace_uploads
from latent_ladder.jobs.planning import describe_plan
from latent_ladder.request.outside_paths import named_paths
from latent_ladder.server.app_context import read_object
from latent_ladder.server.ladder_api.answers import PresetBody
from latent_ladder.server.ladder_api.api_errors import ApiError, not_found
from latent_ladder.server.ladder_api.preset_documents import (
    list_presets,
    read_preset_document,
    request_fields,
    save_own_preset,
)
from latent_ladder.server.ladder_api.studio_context import Studio, get_studio, own_folders
from latent_ladder.storage.atomic_write import free_bytes


async def get_state(request: web.Request) -> web.Response:
    """The server at a glance."""
    studio = get_studio(request)
    config, report = studio.context.config, studio.known_report
    if report is None:  # read once in the background; the answer does not wait
        studio.warm_up()
    body = {
        "version": __version__,
        "started": studio.started,
        "device": None if report is None else device_of(report),
        "models_found": None if report is None else bool(report["runs_now"]),
        "pocket_only": None if report is None else report["only_pocket"],
        "default_preset": None if report is None else report["default_preset"],
        "limits": {"upload_bytes": config.limits.upload, "drafts": MANY},
        "queue": studio.documents.queue(),
        "store": {
            "path": str(config.store),
            "free_bytes": free_bytes(config.store),
            "outputs": str(config.folders.output),
        },
        "comfyui": config.serves_comfyui,
    }
    return web.json_response(body)


def device_of(report: Any) -> dict[str, Any]:
    """The device of a report about this machine."""
    budget, gpus = report["budget"], report["gpus"]
    kind = "cpu" if budget is None else str(budget["device"]).partition(":")[0]
    on_gpu = kind != "cpu" and gpus
    name = gpus[0]["name"] if on_gpu else kind.upper()
    total = gpus[0]["total_bytes"] if on_gpu else report["ram"]["total_bytes"]
    return {"kind": kind, "name": name, "memory_bytes": total}


async def get_presets(request: web.Request) -> web.Response:
    """All presets with what they need; your own come last."""
    report = await get_studio(request).report()
    return web.json_response(await asyncio.to_thread(list_presets, report))


async def get_preset(request: web.Request) -> web.Response:
    """One preset as the fields of a request."""
    name = request.match_info["name"]
    try:
        body = await asyncio.to_thread(read_preset_document, name)
    except RequestError as error:
        raise not_found(f"preset {name[:80]!r}", error.hint) from error
    return web.json_response(body)


async def put_preset(request: web.Request) -> web.Response:
    """Save settings as a preset of your own."""
    studio, name = get_studio(request), request.match_info["name"]
    body = parse_model(PresetBody, await read_object(request))
    document = await studio.planner.call(
        save_own_preset, name, body.request, body.description, body.overwrite, studio.place
    )
    return web.json_response(document)


async def delete_preset(request: web.Request) -> web.Response:
    """Delete a preset of your own."""
    from latent_ladder.request.own_presets import remove_preset

    await asyncio.to_thread(remove_preset, request.match_info["name"])
    return web.json_response({"done": True})


async def get_fields(_: web.Request) -> web.Response:
    """All fields of a request, generated from the code that checks them."""
    return web.json_response(await asyncio.to_thread(request_fields))


async def post_plan(request: web.Request) -> web.Response:
    """Plan a job without running it: stages, seconds, memory, what is reused, warnings."""
    studio = get_studio(request)
    body = {"kind": "make", **await read_object(request)}
    data = await resolve_body(studio, body)
    return web.json_response(await studio.planner.call(describe_plan, data, studio.place))


async def resolve_body(studio: Studio, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a job with the paths of its uploads, which may name no other files.

    Raises :class:`ApiError` for an upload that does not exist, and for a file of this machine that
    is neither an upload, nor in the folders of the server, nor of the run that the body names.
    """
    if body.get("kind") == "upscale" and isinstance(body.get("upload"), str):
        upload = body["upload"].removeprefix("upload:")
        return {**body, "upload": str(studio.uploads.path(upload))}
    data: dict[str, Any] = replace_uploads(body, studio.uploads.path)
    fields = data.get("request")
    if not isinstance(fields, dict):
        return data
    folders, allowed = own_folders(studio), set[str]()
    like = fields.pop("like", None)
    for run in (data.get("run"), like):
        if isinstance(run, str):
            record = await asyncio.to_thread(studio.gallery.record, run)
            allowed |= named_paths(record.request)
    for path in named_paths(fields) - allowed:
        is_path = "/" in path or "\\" in path or path.startswith("~")
        if is_path and not is_inside(path, folders):
            raise ApiError(
                422,
                "foreign_file",
                f"{path[:200]} is not a file of this server",
                "upload the file and name it as upload:ID",
            )
    return data
