"""What the routes of one server share, and how they read requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.server.config import Setup
from latent_ladder.server.file_listing import Listing
from latent_ladder.server.job_loop import Jobs
from latent_ladder.server.websockets import Sockets


@dataclass(frozen=True)
class Context:
    """One server's parts."""

    setup: Setup
    listing: Listing
    jobs: Jobs
    sockets: Sockets


CONTEXT = web.AppKey("context", Context)


def context(request: web.Request) -> Context:
    """The parts of the server that a request came to."""
    return request.app[CONTEXT]


async def read_object(request: web.Request, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The body as a JSON object. Raises :class:`RequestError`."""
    text = await request.read()
    if may_be_empty and text.strip() in (b"", b"null"):
        return {}
    try:
        body = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        why = _first(error)
        raise RequestError(f"the body is not JSON: {why}", "send a JSON object") from error
    if not isinstance(body, dict):
        raise RequestError(f"the body is a {type(body).__name__}", "send a JSON object")
    return body


def ids_of(body: Mapping[str, Any]) -> list[str] | None:
    """The ids that ``delete`` lists; ``None`` where ``clear`` asks for all."""
    if body.get("clear"):
        return None
    found = body.get("delete", [])
    if not isinstance(found, list):
        raise RequestError("delete is no list", 'send {"delete": ["id", ...]}')
    return [str(one) for one in found]


def whole(request: web.Request, name: str) -> int | None:
    """A whole number of the query. Raises :class:`RequestError`."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        number = int(text[:20])
    except ValueError as error:
        raise RequestError(f"{name}={text[:20]!r} is no whole number", f"use {name}=10") from error
    return max(min(number, 2**31), -(2**31))


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _first(error: BaseException) -> str:
    return str(error)[:200] if isinstance(error, ValueError) else "it is nested too deep"
