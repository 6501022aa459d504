"""Middleware that turns a client's mistakes into 4xx answers: JSON with message and hint."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from latent_ladder.errors import LadderError, StoreError
from latent_ladder.storage.atomic_write import NO_ROOM_ERRNOS

BODY_WINDOW_S = 20.0
"""Period in which a client that sends a body must send :data:`MIN_WINDOW_BYTES`."""
MIN_WINDOW_BYTES = 8192
HEADER_TIMEOUT_S = 20.0
"""Time for the first request on a connection, and for the next one on an idle connection."""


@web.middleware
async def report_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a :class:`LadderError`, or a request that cannot be parsed, with status 400.

    For a full disk the status is 507.
    """
    try:
        return await handler(request)
    except LadderError as error:
        return error_response(_status_of(error), error.code, error.message, error.hint or "")
    except (HttpProcessingError, web.RequestPayloadError) as error:
        reason = getattr(error, "message", "") or type(error).__name__
        return error_response(400, "bad_request", f"the request cannot be read: {reason}")


def _status_of(error: LadderError) -> int:
    """400, a fault of the client, but for a store that cannot be written or a full disk."""
    is_full = isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM_ERRNOS
    return 507 if isinstance(error, StoreError) or is_full else 400


def error_response(status: int, kind: str, message: str, details: str = "") -> web.Response:
    """An error in the form of all refusals of this server."""
    body = {"type": kind, "code": kind, "message": message, "details": details}
    return web.json_response({"error": body}, status=status)


@web.middleware
async def limit_body_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 408 to a client whose body comes too slowly, which would occupy a connection."""
    if not request.body_exists:
        return await handler(request)
    watch = asyncio.create_task(_watch_body(request))
    try:
        return await handler(request)
    finally:
        watch.cancel()


async def _watch_body(request: web.Request) -> None:
    content, received = request.content, 0
    while not content.is_eof():
        await asyncio.sleep(BODY_WINDOW_S)
        if content.is_eof():
            return
        if content.total_bytes < received + MIN_WINDOW_BYTES:
            content.set_exception(web.HTTPRequestTimeout(text="the body came too slowly"))
            return
        received = content.total_bytes
