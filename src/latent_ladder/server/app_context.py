"""Objects that all routes of a server share, and functions to read requests."""

from __future__ import annotations

import json
import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.server.config import ServerConfig
from latent_ladder.server.file_listing import FileListing
from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.websockets import WebSocketClients

MAX_LINES = 300


@dataclass
class Context:
    """Shared objects of one server. ``lines`` are its latest messages, each with its time."""

    config: ServerConfig
    listing: FileListing
    jobs: JobLoop
    clients: WebSocketClients
    lines: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=MAX_LINES))
    open_streams: int = 0

    @contextmanager
    def count_stream(self) -> Iterator[None]:
        """Count an open stream of events in this block."""
        self.open_streams += 1
        try:
            yield
        finally:
            self.open_streams -= 1


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Possible half of a surrogate pair in JSON text."""

CONTEXT = web.AppKey("context", Context)


def get_context(request: web.Request) -> Context:
    """The context of the server that received a request."""
    return request.app[CONTEXT]


async def read_body(request: web.Request) -> bytes:
    """The body, decompressed if it is gzip or deflate.

    Raises :class:`RequestError` if it is damaged or compressed in another way, and
    ``HTTPRequestEntityTooLarge`` above ``client_max_size``, before more than that is in memory.
    """
    data = await request.read()
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        return data
    if encoding not in ("gzip", "deflate"):
        raise RequestError(
            f"Content-Encoding {encoding[:40]!a} is unknown", "send the body as it is, or as gzip"
        )
    limit = request.client_max_size
    # 32 more than the window size: zlib finds out whether the header is that of gzip or zlib
    unpacker = zlib.decompressobj(zlib.MAX_WBITS + 32)
    try:
        body = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not valid {encoding}", "send it as it is") from error
    if len(body) > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=len(body))
    if not unpacker.eof or unpacker.unused_data:
        raise RequestError(f"the body is not valid {encoding}: its end is wrong", "send it again")
    return body


async def read_json(request: web.Request) -> Any:
    """The body as JSON. Raises :class:`RequestError`, also for text that is not valid Unicode."""
    text = await read_body(request)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_parse_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            "the body has half of a surrogate pair, which is not a character", "send valid Unicode"
        ) from error
    except (ValueError, RecursionError) as error:
        why = _describe_json_error(error)
        raise RequestError(f"the body is not JSON: {why}", "send a JSON object") from error
    return value


async def read_object(request: web.Request, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The body as a JSON object. Raises :class:`RequestError`."""
    if may_be_empty and (await read_body(request)).strip() in (b"", b"null"):
        return {}
    body = await read_json(request)
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
