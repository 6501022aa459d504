"""Presets and the fields of requests as plain data."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from latent_ladder.errors import LadderError
from latent_ladder.jobs.planning import request_of
from latent_ladder.jobs.workplace import Workplace
from latent_ladder.request.model import Request
from latent_ladder.request.own_presets import check_name, save_preset
from latent_ladder.request.presets import (
    find_preset,
    own_preset_names,
    preset_names,
    read_preset,
)
from latent_ladder.request.stages import STAGE_TABLES

PLACEHOLDER = "a clip"
"""Prompt with which the size of a preset is computed."""


def list_presets(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every preset; ``report`` is that of the model files."""
    states = {state["name"]: state for state in report["presets"]}
    return [_row(name, states.get(name)) for name in (*preset_names(), *own_preset_names())]


def _row(name: str, state: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        preset = read_preset(name)
    except LadderError as error:
        return _empty_row(name, error.message)
    world = preset.world
    row = _empty_row(name, preset.summary)
    row |= {"family": preset.family, "own": preset.file is not None}
    row["stages"] = [str(stage.get("kind")) for stage in preset.fields["stages"]]
    if world is not None:
        row["world"] = {**world._asdict(), "seconds": float(world.seconds)}
    try:
        request = Request.from_dict({"prompt": PLACEHOLDER, **preset.fields})
    except LadderError:
        return row
    width, height = request.resolved.final_size
    row |= {"width": width, "height": height, "frames": request.frames, "fps": float(request.fps)}
    if state is not None:
        row |= {
            "ready": state["ready"],
            "missing": missing_rows(state),
            "fits": None if not state["stages"] and not state["too_big"] else not state["too_big"],
            "too_big": state["too_big"],
            "peak_bytes": max((s["peak_bytes"] for s in state["stages"]), default=None),
        }
    return row


def _empty_row(name: str, text: str) -> dict[str, Any]:
    unknown = (
        "ready",
        "fits",
        "too_big",
        "peak_bytes",
        "width",
        "height",
        "frames",
        "fps",
        "world",
    )
    title = name.replace("-", " ").replace("_", " ").capitalize()
    return {
        "name": name,
        "title": title,
        "description": text,
        "family": "",
        "own": True,
        "missing": [],
        "stages": [],
        **dict.fromkeys(unknown),
    }


def missing_rows(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that a preset lacks."""
    rows = []
    for missing in state["missing"]:
        get = missing["get"] or {}
        rows.append(
            {
                "role": " + ".join(missing["roles"]),
                "file": get.get("file"),
                "bytes": get.get("bytes"),
                "page": get.get("page"),
                "folder": get.get("folder"),
                "why": missing["why"],
            }
        )
    return rows


def read_preset_document(name: str) -> dict[str, Any]:
    """One preset. Raises :class:`RequestError` for an unknown one."""
    names = (*preset_names(), *own_preset_names())
    preset = read_preset(name if name in names else f"{name} ")  # a name, not a path
    return {
        "name": preset.name,
        "request": preset.fields,
        "description": preset.summary,
        "own": preset.file is not None,
    }


def save_own_preset(
    name: str, fields: Mapping[str, Any], text: str, overwrite: bool, place: Workplace
) -> dict[str, Any]:
    """Save the fields as a preset of the user's. Raises :class:`RequestError`."""
    check_name(name)
    request = request_of(fields, (), place, prompt=PLACEHOLDER)
    known = find_preset(request.preset)
    based_on = "" if known is None else known.based_on
    save_preset(name, request, summary=text, based_on=based_on, overwrite=overwrite)
    return read_preset_document(name)


# --- fields ---------------------------------------------------------------------------------------


def request_fields() -> list[dict[str, Any]]:
    """Every field of a request and of its stages, from the models' own schemas."""
    rows = list(_fields(Request, ""))
    for kind, model in STAGE_TABLES.items():
        rows += _fields(model, f"{kind}.")
    return rows


def _fields(model: type[BaseModel], prefix: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    schema = model.model_json_schema(mode="serialization")
    shared = schema.get("$defs", {})
    texts = _texts_of(model)
    for name, found in schema.get("properties", {}).items():
        inner = _table_of(model.model_fields[name].annotation)
        if inner is not None and depth < 4:
            yield from _fields(inner, f"{prefix}{name}.", depth + 1)
            continue
        facts = _flatten(found, shared)
        default = model.model_fields[name].get_default(call_default_factory=True)
        yield {
            "path": f"{prefix}{name}",
            "type": str(facts.get("type", "any")),
            "default": default if isinstance(default, str | int | float | bool) else None,
            "choices": list(facts.get("enum", ())),
            "minimum": facts.get("minimum", facts.get("exclusiveMinimum")),
            "maximum": facts.get("maximum", facts.get("exclusiveMaximum")),
            "description": texts.get(name, ""),
        }


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """The table of fields that an annotation names, alone or as optional."""
    found = [annotation, *get_args(annotation)]
    tables = [each for each in found if isinstance(each, type) and issubclass(each, BaseModel)]
    others = [each for each in found[1:] if each not in tables and each is not type(None)]
    return tables[0] if len(tables) == 1 and not others else None


def _flatten(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Type, choices and range of a schema, without references and null."""
    if "$ref" in schema:
        return _flatten(shared.get(schema["$ref"].rpartition("/")[2], {}), shared)
    options = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if not options:
        found = dict(schema)
        if "const" in found:
            found |= {"enum": [found["const"]]}
        return found
    parts = [_flatten(each, shared) for each in options]
    merged: dict[str, Any] = {
        "type": " or ".join(dict.fromkeys(str(p.get("type", "any")) for p in parts))
    }
    for part in parts:
        merged |= {name: value for name, value in part.items() if name != "type"}
    return merged


@cache
def _texts_of(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings of a model's fields: the strings that follow them in the source."""
    texts: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if not issubclass(parent, BaseModel) or parent is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        lines = body.body if isinstance(body, ast.ClassDef) else []
        for line, following in pairwise(lines):
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                texts[line.target.id] = " ".join(str(following.value.value).split())
    return texts
