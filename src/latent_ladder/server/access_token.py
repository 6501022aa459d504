"""The secret that requests need when the server can be reached from other machines.

Programs send it as ``Authorization: Bearer TOKEN``, or as the password of an address such as
``http://ladder:TOKEN@studio:8188``. A browser gets a cookie: from a link that works once and is
printed at the start, or from a page that asks for the token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from latent_ladder.errors import RequestError

LOGIN_PATH = "/login"
MIN_LENGTH = 12
MAX_LENGTH = 500
COOKIE_DAYS = 30
_FORM_BYTES = 4096
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>latent-ladder</title>
<meta name="viewport" content="width=device-width">
<body style="font:16px/1.5 system-ui;max-width:32em;margin:3em auto;padding:0 1em">
<h1>latent-ladder</h1><p>{message}</p>
<form method="post" action="/login"><label>Token<br><input name="token" type="password" required
autofocus autocomplete="current-password" style="font:inherit;width:100%"></label>
<p><button style="font:inherit">Open</button></p></form>
<p>The token was printed when <code>ladder serve</code> started.</p></body></html>
"""
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"


def new_token() -> str:
    """A random token."""
    return secrets.token_urlsafe(24)


def check_token(token: str) -> str:
    """``token`` itself. Raises :class:`RequestError` if it is too short or cannot be sent."""
    if not MIN_LENGTH <= len(token) <= MAX_LENGTH:
        raise RequestError(
            f"the token has {len(token)} characters, expected {MIN_LENGTH} to {MAX_LENGTH}",
            "leave out --token (and LADDER_TOKEN): a random one is made and printed",
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise RequestError(
            "the token has spaces or characters that are not ASCII", "use letters and digits"
        )
    return token


class TokenGate:
    """Checks the token of requests, and lets browsers in."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._link_key = secrets.token_urlsafe(24)
        session = hmac.new(token.encode(), b"browser session", hashlib.sha256).hexdigest()
        # Cookies ignore ports: the name keeps two servers of one machine apart.
        self._cookie_name, self._cookie = f"ladder_{session[:8]}", session[8:]

    @property
    def link(self) -> str:
        """Path and query that let one browser in, once."""
        return f"{LOGIN_PATH}?key={quote(self._link_key)}"

    def allows(self, request: web.BaseRequest) -> bool:
        """True for a request with the token or with a browser's cookie."""
        cookie = request.cookies.get(self._cookie_name, "")
        sent = read_token(request.headers)
        return _equal(cookie, self._cookie) or _equal(sent, self._token)

    def middleware(self) -> Middleware:
        """Middleware that refuses requests without the token (401) and answers ``/login``."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path == LOGIN_PATH and request.method in ("GET", "POST"):
                return await self._log_in(request)
            if self.allows(request):
                return await handler(request)
            if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
                return _login_page("This server needs a token.")
            body = {
                "type": "unauthorized",
                "code": "unauthorized",
                "message": "this server needs a token",
                "details": "send the header Authorization: Bearer TOKEN",
            }
            headers = {"WWW-Authenticate": 'Bearer realm="latent-ladder"'}
            return web.json_response({"error": body}, status=401, headers=headers)

        return check

    async def _log_in(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            key = request.query.get("key", "")
            if not key:
                return _login_page("This server needs a token.")
            if not _equal(key, self._link_key):
                return _login_page("This link was used before. Enter the token.")
            self._link_key = ""
        elif not _equal(await _read_form_token(request), self._token):
            return _login_page("This is not the token of this server.")
        answer = web.Response(status=303, headers={"Location": "/"})
        answer.set_cookie(
            self._cookie_name,
            self._cookie,
            max_age=COOKIE_DAYS * 86_400,
            httponly=True,
            samesite="Strict",
            secure=request.secure,
        )
        return answer


def read_token(headers: Mapping[str, str]) -> str:
    """The token in ``Authorization``: a bearer token or the password; empty if there is none."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _equal(sent: str, right: str) -> bool:
    """True if both are equal and not empty; takes the same time for all wrong values."""
    return bool(right) and hmac.compare_digest(sent.encode("utf-8", "replace"), right.encode())


async def _read_form_token(request: web.Request) -> str:
    if request.content_length is None or request.content_length > _FORM_BYTES:
        raise web.HTTPRequestEntityTooLarge(_FORM_BYTES, request.content_length or 0)
    token = (await request.post()).get("token", "")
    return token.strip() if isinstance(token, str) else ""


def _login_page(message: str) -> web.Response:
    return web.Response(
        text=_PAGE.format(message=message),
        content_type="text/html",
        status=401,
        headers={"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-store"},
    )
