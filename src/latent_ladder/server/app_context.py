"""Objects that all routes of a server share, and functions to read requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.server.config import ServerConfig
from latent_ladder.server.file_listing import FileListing
from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.websockets import WebSocketClients


@dataclass(frozen=True)
class Context:
    """Shared objects of one server."""

    config: ServerConfig
    listing: FileListing
    jobs: JobLoop
    clients: WebSocketClients


CONTEXT = web.AppKey("context", Context)


def get_context(request: web.Request) -> Context:
    """The context of the server that received a request."""
    return request.app[CONTEXT]


async def read_object(request: web.Request, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The body as a JSON object. Raises :class:`RequestError`."""
    text = await request.read()
    if may_be_empty and text.strip() in (b"", b"null"):
        return {}
    try:
        body = json.loads(text, parse_constant=_refuse_constant, parse_float=_parse_finite)
    except (ValueError, RecursionError) as error:
        why = _describe_json_error(error)
        raise RequestError(f"the body is not JSON: {why}", "send a JSON object") from error
    if not isinstance(body, dict):
        raise RequestError(f"the body is a {type(body).__name__}", "send a JSON object")
    return body


def read_deleted_ids(body: Mapping[str, Any]) -> list[str] | None:
    """The ids in ``delete``; ``None`` (all) for ``clear``. Raises :class:`RequestError`."""
    if body.get("clear"):
        return None
    ids = body.get("delete", [])
    if not isinstance(ids, list):
        raise RequestError("delete is not a list", 'send {"delete": ["id", ...]}')
    return [str(job_id) for job_id in ids]


def read_query_integer(request: web.Request, name: str) -> int | None:
    """An integer of the query, clamped to 32 bits. Raises :class:`RequestError`."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        number = int(text[:20])
    except ValueError as error:
        raise RequestError(f"{name}={text[:20]!r} is not an integer", f"use {name}=10") from error
    return max(min(number, 2**31), -(2**31))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not valid in JSON")


def _parse_finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _describe_json_error(error: BaseException) -> str:
    return str(error)[:200] if isinstance(error, ValueError) else "it is nested too deep"
