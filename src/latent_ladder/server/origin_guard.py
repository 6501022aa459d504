"""Protection against web pages of other sites that send requests to the server.

A web page can send requests to a loopback address, and its own host name can be made to point there
(DNS rebinding). Browsers send the page's site and the host in ``Origin``, ``Sec-Fetch-Site`` and
``Host``. A request from another site is refused, and so is one for a host that is not this machine:
a loopback name, and where the server listens on other addresses, an IP address or one of this
machine's own names. No site can make a browser send those. Programs send no ``Origin`` and are not
affected.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

HEADERS = {"X-Content-Type-Options": "nosniff"}
_HEADERS = "Content-Type, Authorization, Comfy-User, Idempotency-Key"
_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


@dataclass(frozen=True)
class Access:
    """Access settings.

    ``listen`` is the bound address, ``cors`` an allowed origin (``"*"``: all), ``hosts`` more names
    of this machine, as behind a proxy. ``token`` is the secret that every request must have, if
    any (:mod:`.access_token`).
    """

    listen: str = "127.0.0.1"
    cors: str | None = None
    hosts: tuple[str, ...] = ()
    token: str = field(default="", repr=False)

    def refusal_reason(self, headers: Mapping[str, str]) -> str | None:
        """The reason to refuse a request with these headers; ``None`` if it is allowed."""
        host = headers.get("Host", "")
        if not self._is_this_machine(host):
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
        if is_loopback(name) or name in self.hosts:
            return True
        if is_loopback(self.listen):
            return False
        return _is_address(name) or name in {self.listen.lower(), *own_names()}

    def cors_headers(self) -> dict[str, str]:
        """Headers that allow pages of ``cors`` to read answers."""
        if self.cors is None:
            return {}
        return {
            "Access-Control-Allow-Origin": self.cors,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _HEADERS,
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


def own_names() -> tuple[str, ...]:
    """The names of this machine in its local network, in lower case."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return (name, short, f"{short}.local")


def _is_address(host: str) -> bool:
    """True for an IP address, in brackets or not."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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


def add_headers(access: Access) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Signal handler that adds headers to every answer before it is sent."""
    headers = HEADERS | access.cors_headers()

    async def on_prepare(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in headers.items():
            response.headers.setdefault(name, value)

    return on_prepare
