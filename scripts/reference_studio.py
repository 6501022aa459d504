"""Page of the studio's HTTP API, from the table of its routes and their models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reference_text import code, table

from latent_ladder.server.ladder_api.openapi import build_document
from latent_ladder.server.ladder_api.route_spec import FILE, SOCKET, Route
from latent_ladder.server.ladder_api.route_table import ROUTES

INTRO = """# Studio API

`ladder studio` and `ladder serve --comfyui` answer these routes. The page of the
[studio](../guide/studio.md) uses nothing else, so a script can do what the page does:

```
curl -X POST http://127.0.0.1:8288/ladder/jobs \\
  -d '{"kind": "drafts", "request": {"prompt": "a red ball rolls"}, "count": 4}'
```

`GET /ladder/openapi.json` has the same as an OpenAPI 3.1 document, for programs that generate a
client. Bodies and answers are JSON. Times are ISO 8601 in UTC, sizes bytes, durations seconds.

## Errors

A refusal has a status of 400 or more and says what was wrong and what helps:

```json
{"error": {"code": "request_error", "message": "frames=100 is not 8k+1", "hint": "use frames=97",
           "problems": [{"field": "frames", "message": "...", "hint": "..."}]}}
```

| status | meaning |
|---|---|
| 401, 403 | the token is missing; a page of another site asked |
| 404 | there is no such job, run, upload or preset |
| 409 | not possible now, such as deleting what a job needs |
| 413, 415 | a file is too large, or no image, video or sound |
| 422 | impossible or unknown values; `problems` lists all of them |
| 429 | too many jobs wait |
| 507 | the disk is full; nothing was lost |

Unknown fields and parameters are refused by name. `Idempotency-Key` on `POST /ladder/jobs` makes a
repeated request return the job of the first one.

## Access

The server answers to this machine only, unless `--listen` names another address; then every request
needs a token: `Authorization: Bearer TOKEN`, or the cookie that the link on the terminal gives a
browser once. Pages of other sites are refused, also on the WebSocket.

## Jobs

A request job does what the command of its name does: `make`, `drafts` (`ladder draft`), `refine`,
`sweep`, `upscale`, `download` (`ladder models get`); `graph` runs a ComfyUI workflow. Its seed is
picked when it is queued. All jobs share one queue with ComfyUI's; it is kept on disk. A server that
was killed runs its job again, and reuses every stored stage. Clips are written to `studio/clips` in
the store, or to `--output-directory`.

`request` has the fields of a [request](request.md) and starts from its `preset`; `sets` changes
values inside stages as `--set` does. Input files are uploads: `"upload:ID"` or `{"upload": "ID"}`.
`request.like` names a run whose input files may be used again. Pausing a job stops it after its
current step; pausing the queue lets the running job end. A job that is tried again keeps its id.

## Events

`/ladder/events` is a WebSocket. Its first message is the whole state, so a page that connects
again has missed nothing that matters. A slow page gets the newest message about each thing.

| type | fields | when |
|---|---|---|
| `state` | `jobs`, `queue` | first: unfinished jobs and the last 20 ended ones |
| `job` | `job` | a job was added, or changed its state, order or a clip |
| `job_removed` | `job` (id) | an ended job was deleted |
| `progress` | `job`, `clip`, `stage`, `position`, `of`, `done`, `steps`, `seconds_left` | a step |
| `preview` | `job`, `clip`, `stage`, `step`, `url` | a new preview picture; the address changes |
| `warning` | `job`, `code`, `message` | a warning |
| `queue` | `queue` | the queue was paused, or the number of jobs changed |
| `runs` | | the gallery changed |

`seconds_left` is that of the stage. A preview is a strip of frames of the clip.

## Routes
"""


def page() -> str:
    """The page."""
    schemas = build_document(ROUTES)["components"]["schemas"]
    parts = [INTRO]
    for group in dict.fromkeys(route.group for route in ROUTES):
        parts.append(f"### {group}\n")
        rows = [_row(route) for route in ROUTES if route.group == group]
        parts.append(table(("route", "what it does", "body", "answer"), rows))
        parts += _queries([route for route in ROUTES if route.group == group])
    parts.append("\n## Forms\n")
    parts += _forms(schemas)
    return "\n".join(parts).rstrip() + "\n"


def _row(route: Route) -> tuple[str, ...]:
    body = "a file" if route.form else "" if route.body is None else _name(route.body)
    return (
        code(f"{route.method} {route.plain_path}"),
        route.summary,
        body,
        _name(route.answer),
    )


def _name(model: Any) -> str:
    """A link to the form of a model, or words."""
    if model is FILE:
        return "a file"
    if model is SOCKET:
        return "a WebSocket"
    if isinstance(model, type) and model is not dict and hasattr(model, "model_fields"):
        return f"[{model.__name__}](#{model.__name__.lower()})"
    inner = getattr(model, "__args__", ())
    if getattr(model, "__origin__", None) is list and inner:
        return f"list of {_name(inner[0])}"
    return "JSON" if model is dict else "one of the jobs below"


def _queries(routes: list[Route]) -> Iterator[str]:
    rows = [
        (code(f"{route.method} {route.plain_path}"), code(name), text)
        for route in routes
        for name, text in route.query.items()
    ]
    if rows:
        yield table(("route", "parameter", "meaning"), rows)


def _forms(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f"### {name}\n"
        text = schema.get("description", "")
        if text:
            yield " ".join(text.split()) + "\n"
        required = set(schema.get("required", ()))
        rows = [
            (
                code(field),
                _type(facts),
                "yes" if field in required else _default(facts),
                facts.get("description", ""),
            )
            for field, facts in schema.get("properties", {}).items()
        ]
        if rows:
            yield table(("field", "type", "always", "meaning"), rows)


def _default(facts: Mapping[str, Any]) -> str:
    return "" if facts.get("default") is None else f"else {code(facts['default'])}"


def _type(facts: Mapping[str, Any]) -> str:
    """The type of a field in words."""
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in facts:
        return code(facts["const"])
    if "enum" in facts:
        return ", ".join(code(each) for each in facts["enum"])
    if "anyOf" in facts:
        return " or ".join(_type(each) for each in facts["anyOf"])
    if facts.get("type") == "array":
        return f"list of {_type(facts['items'])}" if facts.get("items") else "list"
    return str(facts.get("type", "any"))
