"""One row per route: what the application serves and what the documents say about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from latent_ladder.server.ladder_api.api_errors import Handler, answering_errors

Method = Literal["GET", "POST", "PUT", "DELETE"]
FILE = "file"
"""Answer of a route that sends a file."""
SOCKET = "socket"
"""Answer of a route that opens a WebSocket."""
_PARAMETER = re.compile(r"\{(\w+)(?::(?:[^{}]|\{[^{}]*\})*)?\}")
"""A parameter of a path with its pattern, which may have braces of its own."""


@dataclass(frozen=True)
class Route:
    """One route. ``body`` and ``answer`` are types that pydantic can describe.

    ``path`` is aiohttp's, with patterns of its parameters. ``query`` maps parameters to what they
    mean. ``form``: the body is a file. ``also`` are further answers by status.
    """

    method: Method
    path: str
    handler: Handler
    group: str
    answer: Any
    body: Any = None
    status: int = 200
    query: Mapping[str, str] = field(default_factory=dict)
    form: bool = False
    also: Mapping[int, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first paragraph of the handler's docstring."""
        text = (self.handler.__doc__ or "").partition("\n\n")[0]
        return " ".join(text.split())

    @property
    def plain_path(self) -> str:
        """The path as OpenAPI writes it: ``/ladder/jobs/{id}``."""
        return _PARAMETER.sub(r"{\1}", self.path)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters in the path."""
        return tuple(_PARAMETER.findall(self.path))

    def definition(self) -> web.RouteDef:
        """The route for aiohttp; a GET answers HEAD, too, except for the WebSocket."""
        options = {"allow_head": self.answer is not SOCKET} if self.method == "GET" else {}
        return web.route(self.method, self.path, answering_errors(self.handler), **options)
