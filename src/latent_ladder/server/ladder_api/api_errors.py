"""Errors of the API as answers: a status, and ``{"error": {code, message, hint, problems}}``."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import wraps
from typing import Any

from aiohttp import web

from latent_ladder.errors import LadderError, MediaError, RequestError, StoreError
from latent_ladder.storage.atomic_write import NO_ROOM_ERRNOS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_FIELD = re.compile(r"^([A-Za-z_]\w*(?:\[[^\]]*\]|\.\w+)*)(?:=| is\b)")
"""The field at the start of a problem's sentence."""


class ApiError(LadderError):
    """A refusal with a status of its own; ``reason`` is its stable name for programs."""

    def __init__(self, status: int, reason: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.status, self.reason = status, reason

    @property
    def code(self) -> str:
        """The stable name."""
        return self.reason


def not_found(what: str, hint: str | None = None) -> ApiError:
    """The error for something that does not exist."""
    return ApiError(404, "not_found", f"there is no {what}", hint)


def conflict(message: str, hint: str | None = None) -> ApiError:
    """The error for something that is not possible now."""
    return ApiError(409, "conflict", message, hint)


def error_body(
    code: str,
    message: str,
    hint: str | None = None,
    problems: Iterable[tuple[str, str | None]] = (),
) -> dict[str, Any]:
    """The JSON of an error."""
    rows = [{"field": _field_of(m), "message": m, "hint": h} for m, h in problems]
    return {"error": {"code": code, "message": message, "hint": hint, "problems": rows}}


def _field_of(message: str) -> str | None:
    found = _FIELD.match(message)
    return None if found is None else found[1]


def status_of(error: LadderError) -> int:
    """422 for a request that is impossible, 507 for a full disk, else 400."""
    if isinstance(error, ApiError):
        return error.status
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in NO_ROOM_ERRNOS:
        return 507
    if isinstance(error, StoreError):
        return 404 if error.message.startswith("there is no run") else 507
    return 415 if isinstance(error, MediaError) else 422


def answer_error(error: LadderError) -> web.Response:
    """The answer to an error."""
    problems = error.problems if isinstance(error, RequestError) else ()
    body = error_body(error.code, error.message, error.hint, problems)
    return web.json_response(body, status=status_of(error))


def answering_errors(handler: Handler) -> Handler:
    """The handler, with errors answered in the form of this API."""

    @wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except LadderError as error:
            return answer_error(error)
        except web.HTTPRequestEntityTooLarge as error:
            body = error_body("too_large", "the body is too large", str(error.text))
            return web.json_response(body, status=413)

    return answer


def check_query(query: Mapping[str, str], known: Iterable[str]) -> None:
    """Raise :class:`RequestError` for a parameter of the query that is not known."""
    names = tuple(known)
    unknown = [name for name in query if name not in names]
    if unknown:
        hint = f"use {', '.join(names)}" if names else "leave it out"
        raise RequestError(f"{unknown[0][:80]} is not a known parameter", hint)
