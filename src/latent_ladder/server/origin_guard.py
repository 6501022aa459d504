"""Who may talk to the server: pages of other sites may not, unless the user says so.

A web page can send requests to a loopback address, and a host name of its own can be made to point
there (DNS rebinding). Browsers name page and host in ``Origin``, ``Sec-Fetch-Site`` and ``Host``,
so a request from another site is refused, and so is one for a host that is not this machine while
only this machine can connect. Programs send no ``Origin`` and pass.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from latent_ladder.errors import LadderError

HEADERS = {"X-Content-Type-Options": "nosniff"}
_METHODS = "DELETE, GET, HEAD, OPTIONS, POST"


@dataclass(frozen=True)
class Access:
    """``listen`` is the address bound; ``cors`` an origin that may (``"*"``: any); ``hosts`` more
    names that this machine goes by, behind a proxy."""

    listen: str = "127.0.0.1"
    cors: str | None = None
    hosts: tuple[str, ...] = ()

    def refusal(self, headers: Mapping[str, str]) -> str | None:
        """Why a request is refused, if it is."""
        host = headers.get("Host", "")
        if is_loopback(self.listen) and not self._is_ours(host):
            return f"host {host[:100]!r} is not this machine; --allow-host names others"
        if self.cors is not None:
            return None
        if headers.get("Sec-Fetch-Site") == "cross-site":
            return "a page of another site may not use this server"
        origin = headers.get("Origin")
        if origin is not None and not _same_site(origin, host):
            return f"origin {origin[:100]!r} may not use this server"
        return None

    def _is_ours(self, host: str) -> bool:
        name = _host_name(host)
        return is_loopback(name) or name in self.hosts

    def cors_headers(self) -> dict[str, str]:
        """What tells a browser that a page of ``cors`` may read answers."""
        if self.cors is None:
            return {}
        return {
            "Access-Control-Allow-Origin": self.cors,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": "Content-Type, Authorization, Comfy-User",
            **({} if self.cors == "*" else {"Vary": "Origin"}),
        }


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """``Host`` without its port, brackets and case; empty where it cannot be read."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same_site(origin: str, host: str) -> bool:
    try:
        page = urlsplit(origin)
    except ValueError:
        return False
    return page.scheme in ("http", "https") and page.netloc.lower() == host.lower()


def guard(access: Access) -> Middleware:
    """The middleware that refuses, answers preflight requests and adds headers."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        why = access.refusal(request.headers)
        if why is not None:
            return web.json_response({"error": why}, status=403)
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=access.cors_headers())
        return await handler(request)

    return guarded


@web.middleware
async def errors_in_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals of this package become 400 with one sentence and a hint."""
    try:
        return await handler(request)
    except LadderError as error:
        told = {"type": error.code, "message": error.message, "details": error.hint or ""}
        return web.json_response({"error": told}, status=400)


def add_headers(access: Access) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """The signal that puts headers on every answer before it is sent."""
    extra = HEADERS | access.cors_headers()

    async def prepared(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in extra.items():
            response.headers.setdefault(name, value)

    return prepared
