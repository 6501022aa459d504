"""OpenAPI 3.1 document of a table of routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from latent_ladder._version import __version__
from latent_ladder.server.ladder_api.answers import Error
from latent_ladder.server.ladder_api.route_spec import FILE, SOCKET, Route

_REF = "#/components/schemas/{model}"
_UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def build_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document. Every route is in it, with the models of its body and its answers."""
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operations = paths.setdefault(route.plain_path, {})
        operations[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Ladder Studio",
            "version": __version__,
            "description": "Requests, jobs, runs, uploads, models and graphs of one server. A "
            "server that other machines can reach wants a bearer token.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    name = route.handler.__name__
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": route.summary,
        "tags": [route.group],
        "responses": _responses(route, schemas),
    }
    parameters = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}}
        for each in route.parameters
    ]
    parameters += [
        {"name": each, "in": "query", "description": text, "schema": {"type": "string"}}
        for each, text in route.query.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.form:
        operation["requestBody"] = _UPLOAD_BODY
    elif route.body is not None:
        schema = _schema(route.body, schemas, "validation")
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _responses(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    if route.answer is SOCKET:
        return {"101": {"description": "A WebSocket of JSON messages, see the guide."}}
    found = {str(route.status): _response(route.answer, schemas)}
    found |= {str(status): _response(model, schemas) for status, model in route.also.items()}
    found["default"] = {"description": "A refusal.", **_content(Error, schemas)}
    return found


def _response(answer: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    if answer is FILE:
        content = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
        return {"description": "The file.", "content": content}
    return {"description": "The answer.", **_content(answer, schemas)}


def _content(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = _schema(model, schemas, "serialization")
    return {"content": {"application/json": {"schema": schema}}}


def _schema(model: Any, schemas: dict[str, Any], mode: Any) -> dict[str, Any]:
    """The schema of a model; those of the models in it go to ``schemas``."""
    found = TypeAdapter(model).json_schema(ref_template=_REF, mode=mode)
    schemas |= found.pop("$defs", {})
    title = found.get("title")
    if found.get("type") == "object" and title:
        schemas[title] = found
        return {"$ref": _REF.format(model=title)}
    return found
