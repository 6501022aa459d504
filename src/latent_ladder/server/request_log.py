"""Log line for every HTTP request: method, path, status, seconds.

Query strings, headers and bodies are not logged: they may have secrets or private text.
"""

from __future__ import annotations

import logging
import time

from aiohttp import web
from aiohttp.typedefs import Handler

logger = logging.getLogger(__name__)


@web.middleware
async def log_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log the request when its answer is ready, at level INFO, or DEBUG for a GET."""
    start = time.monotonic()
    status = 500
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        level = logging.DEBUG if request.method == "GET" and status < 400 else logging.INFO
        seconds = time.monotonic() - start
        logger.log(level, "%s %s: %d in %.3f s", request.method, request.path, status, seconds)
