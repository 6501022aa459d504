"""ComfyUI workflows as forms; jobs of the kind `graph` run them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web

from latent_ladder.jobs.job_body import parse_model
from latent_ladder.server.app_context import read_object
from latent_ladder.server.ladder_api.answers import GraphBody
from latent_ladder.server.ladder_api.graph_documents import inspect_graph
from latent_ladder.server.ladder_api.studio_context import get_studio

WORKFLOWS = "workflows"


async def post_inspect(request: web.Request) -> web.Response:
    """The values of a workflow that can be changed, its outputs, and what cannot run."""
    studio = get_studio(request)
    body = parse_model(GraphBody, await read_object(request))
    inputs = (studio.context.config.folders.input,)
    found = await studio.planner.call(inspect_graph, body.graph, studio.place, inputs)
    found.pop("graph")
    return web.json_response(found)


async def get_graphs(request: web.Request) -> web.Response:
    """The workflows that were saved in ComfyUI's editor."""
    folder = get_studio(request).context.config.user / "default" / WORKFLOWS
    return web.json_response(await asyncio.to_thread(lambda: list(_saved(folder))))


def _saved(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.json")):
        status = path.stat()
        name = path.relative_to(folder).as_posix()
        modified = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")
        url = f"/userdata/{quote(f'{WORKFLOWS}/{name}', safe='')}"
        yield {"name": name, "bytes": status.st_size, "modified": modified, "url": url}
