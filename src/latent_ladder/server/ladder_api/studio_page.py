"""Files of the page, ``/studio/``, from the package; their policy allows no other site."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from aiohttp import web

FOLDER = Path(__file__).parents[2] / "studio"
INDEX = "index.html"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}
"""Content types; files of other kinds are not served."""


async def get_page(request: web.Request) -> web.StreamResponse:
    """One file of the page; 404 for everything that is not one."""
    name = request.match_info["name"] or INDEX
    path = find_file(FOLDER, name)
    if path is None:
        raise web.HTTPNotFound(text="no such file")
    headers = {
        "Content-Type": TYPES[path.suffix],
        "Content-Security-Policy": POLICY,
        "Cache-Control": "no-cache",  # asked again each time, answered 304 where nothing changed
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    return web.FileResponse(path, headers=headers)


def find_file(folder: Path, name: str) -> Path | None:
    """The file of a relative name; ``None`` for names that lead out, and for other kinds."""
    parts = PurePosixPath(name).parts
    if "\\" in name or "\0" in name or any(part in ("..", "/") or ":" in part for part in parts):
        return None
    path = folder.joinpath(*parts)
    if path.suffix not in TYPES or not path.is_file():
        return None
    return path if path.resolve().is_relative_to(folder.resolve()) else None


async def redirect_to_page(_: web.Request) -> web.StreamResponse:
    """The way from ``/`` and ``/studio`` to the page."""
    raise web.HTTPFound("/studio/")


ROUTES = (
    web.get("/studio", redirect_to_page),
    web.get("/studio/{name:.*}", get_page),
)
HOME_ROUTES = (web.get("/", redirect_to_page),)
"""For servers whose first page is the studio."""
