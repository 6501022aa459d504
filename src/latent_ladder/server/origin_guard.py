"""Protection against web pages of other sites that send requests to the server.

A web page can send requests to a loopback address, and its own host name can be made to point there
(DNS rebinding). Browsers send the page's site and the host in ``Origin``, ``Sec-Fetch-Site`` and
``Host``. A request from another site is refused. While the server listens on a loopback address, a
request for a host that is not this machine is refused, too. Programs send no ``Origin`` and are
not affected.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from latent_ladder.errors import LadderError, StoreError
from latent_ladder.storage.atomic_write import NO_ROOM_ERRNOS

HEADERS = {"X-Content-Type-Options": "nosniff"}
_METHODS = "DELETE, GET, HEAD, OPTIONS, POST"


@dataclass(frozen=True)
class Access:
    """Access settings.

    ``listen`` is the bound address, ``cors`` an allowed origin (``"*"``: all), ``hosts`` more names
    of this machine, as behind a proxy.
    """

    listen: str = "127.0.0.1"
    cors: str | None = None
    hosts: tuple[str, ...] = ()

    def refusal_reason(self, headers: Mapping[str, str]) -> str | None:
        """The reason to refuse a request with these headers; ``None`` if it is allowed."""
        host = headers.get("Host", "")
        if is_loopback(self.listen) and not self._is_this_machine(host):
            return f"host {host[:100]!r} is not this machine; --allow-host adds a name"
        if self.cors is not None:
            return None
        if headers.get("Sec-Fetch-Site") == "cross-site":
            return "pages of another site may not use this server; --enable-cors-header allows one"
        origin = headers.get("Origin")
        if origin is not None and not _is_same_site(origin, host):
            return (
                f"origin {origin[:100]!r} may not use this server; --enable-cors-header allows one"
            )
        return None

    def _is_this_machine(self, host: str) -> bool:
        name = _host_name(host)
        return is_loopback(name) or name in self.hosts

    def cors_headers(self) -> dict[str, str]:
        """Headers that allow pages of ``cors`` to read answers."""
        if self.cors is None:
            return {}
        return {
            "Access-Control-Allow-Origin": self.cors,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": "Content-Type, Authorization, Comfy-User",
            **({} if self.cors == "*" else {"Vary": "Origin"}),
        }


def is_loopback(host: str) -> bool:
    """True for an address or name that only this machine can reach."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """``Host`` in lower case without port and brackets; empty if it is malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_same_site(origin: str, host: str) -> bool:
    try:
        page = urlsplit(origin)
    except ValueError:
        return False
    return page.scheme in ("http", "https") and page.netloc.lower() == host.lower()


def refuse_other_sites(access: Access) -> Middleware:
    """Middleware that refuses requests (403) and answers preflight requests."""

    @web.middleware
    async def check_access(request: web.Request, handler: Handler) -> web.StreamResponse:
        reason = access.refusal_reason(request.headers)
        if reason is not None:
            return web.json_response({"error": reason}, status=403)
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=access.cors_headers())
        return await handler(request)

    return check_access


@web.middleware
async def report_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware that answers a :class:`LadderError` with its message and hint.

    The status is 400, for a full disk 507.
    """
    try:
        return await handler(request)
    except LadderError as error:
        body = {"type": error.code, "message": error.message, "details": error.hint or ""}
        return web.json_response({"error": body}, status=_status_of(error))


def _status_of(error: LadderError) -> int:
    """400, a fault of the client, but for a store that cannot be written or a full disk."""
    is_full = isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM_ERRNOS
    return 507 if isinstance(error, StoreError) or is_full else 400


def add_headers(access: Access) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Signal handler that adds headers to every answer before it is sent."""
    headers = HEADERS | access.cors_headers()

    async def on_prepare(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in headers.items():
            response.headers.setdefault(name, value)

    return on_prepare
