"""All routes of the server.

ComfyUI's routes exist twice, also under ``/api``, where its editor asks for them. Every route of
every group passes the checks of :func:`.app.build_application`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from aiohttp import web

from latent_ladder.server import comfy_v2, editor, job_routes, openai_videos, routes, user_files
from latent_ladder.server.config import ServerConfig
from latent_ladder.server.ladder_api import route_table as ladder_routes
from latent_ladder.server.ladder_api import studio_page

COMFYUI_ROUTES = (
    *routes.ROUTES,
    *job_routes.ROUTES,
    *user_files.ROUTES,
    *editor.ROUTES,
)
"""Routes that are also available under ``/api``, except ``/``."""
OWN_ROUTES = (*comfy_v2.ROUTES, *openai_videos.ROUTES, *editor.INTERNAL_ROUTES)
"""Routes of other interfaces, whose addresses are complete."""
VIEW_ROUTES = (
    web.get("/view", routes.get_view),
    web.get("/userdata/{file}", user_files.get_file),
)
"""Files of graphs, which the studio shows without the rest of ComfyUI's routes."""
ROUTES = (*COMFYUI_ROUTES, *OWN_ROUTES)


def all_routes(config: ServerConfig) -> Iterator[web.RouteDef]:
    """The routes of a server, with the files of the editor if it is served."""
    yield from ladder_routes.definitions()
    yield from studio_page.ROUTES
    if config.opens_studio:
        yield from studio_page.HOME_ROUTES
    if not config.serves_comfyui:
        yield from VIEW_ROUTES
        return
    yield from OWN_ROUTES
    yield from COMFYUI_ROUTES
    yield from _under_api(COMFYUI_ROUTES)
    if config.frontend is not None:
        yield from editor.STATIC_ROUTES  # last: they match every path


def _under_api(table: Iterable[web.RouteDef]) -> Iterator[web.RouteDef]:
    for route in table:
        if route.path != "/":
            yield web.RouteDef(route.method, f"/api{route.path}", route.handler, dict(route.kwargs))
