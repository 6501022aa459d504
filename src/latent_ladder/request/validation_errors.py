"""Sentences for pydantic's errors: subject, got, expected, and a hint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from latent_ladder.errors import did_you_mean
from latent_ladder.request.problems import Found, Problem

Tables = Mapping[str, type[BaseModel]]


def value_problems(
    error: ValidationError, root: type[BaseModel], stages: Tables, names: Sequence[str]
) -> list[Found]:
    """Sentences for the errors that pydantic found in a request.

    ``root`` is the request's table, ``stages`` those of the stage kinds, ``names`` the stages of
    this request as a user writes them.
    """
    found: dict[Found, None] = {}  # an ordered set
    for details in error.errors(include_url=False):
        path, table = _locate(details["loc"], root, stages, names)
        found[_sentence(path, table, stages, details)] = None
    return list(found)


def _locate(
    loc: Sequence[str | int], root: type[BaseModel], stages: Tables, names: Sequence[str]
) -> tuple[str, type[BaseModel]]:
    """The path as a user writes it, and the table its last field belongs to."""
    parts, table, path = list(loc), root, ""
    if len(parts) >= 2 and parts[0] == "stages" and isinstance(parts[1], int):
        path = names[parts[1]] if parts[1] < len(names) else f"stages[{parts[1]}]"
        table = stages.get(str(parts[2]), root) if len(parts) > 2 else root
        parts = parts[3:]  # the list, the index, the kind
    for i, part in enumerate(parts):
        path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else str(part))
        if i + 1 < len(parts):
            table = _inner_table(table, part)
    return path, table


def _inner_table(table: type[BaseModel], field: str | int) -> type[BaseModel]:
    if isinstance(field, int) or field not in table.model_fields:
        return table
    waiting = [table.model_fields[field].annotation]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        waiting += get_args(kind)
    return table


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_LONE_NUMBER = re.compile(r"^use (\d+(?:\.\d+)?)(?=$|,)")
"""A hint that is a number alone; the field it belongs to is added."""


def _sentence(path: str, table: type[BaseModel], stages: Tables, details: ErrorDetails) -> Found:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Problem):
        parent = path.rpartition(".")[0]
        whole = f"{parent}.{cause.message}" if parent else cause.message
        if cause.whole:
            return whole, cause.hint
        hint = None if cause.hint is None else _LONE_NUMBER.sub(rf"use {path}=\1", cause.hint)
        return f"{path}={_shorten(value)} {cause.message}", hint
    if kind == "extra_forbidden":
        return f"{path} is not a field", field_hint(path.rpartition(".")[2], table, stages)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kind_name = value.get("kind") if isinstance(value, Mapping) else value
        text = f"{path}.kind={_shorten(kind_name)} is not a kind of stage"
        return text, did_you_mean(str(kind_name), stages)
    if kind in SENTENCES:
        return SENTENCES[kind](path, value, context)
    return f"{path}={_shorten(value)}: {details['msg']}", None


def field_hint(name: str, table: type[BaseModel], stages: Tables) -> str:
    """A hint for an unknown field: the table that has it, or a similar name."""
    within = "stages" in table.model_fields
    for prefix, inner in (*_tables(table), *(stages.items() if within else ())):
        if name in inner.model_fields:
            return f"did you mean {prefix}.{name}?"
        for deeper, innermost in _tables(inner):
            if name in innermost.model_fields:
                return f"did you mean {prefix}.{deeper}.{name}?"
    return did_you_mean(name, {*table.model_fields, *(stages if within else ())})


def _tables(table: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    """The tables inside ``table`` with their paths, one or two names deep; none in lists."""
    found: list[tuple[str, type[BaseModel]]] = []
    for field, info in table.model_fields.items():
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found.append((field, kind))
    return found + [(f"{a}.{b}", inner) for a, kind in found for b, inner in _tables(kind)]


def _missing(path: str, _value: Any, _context: Any) -> Found:
    return f"{path} is missing", f"set {path}"


def _not_an_integer(path: str, value: Any, _context: Any) -> Found:
    finite = isinstance(value, float) and abs(value) < float("inf")
    hint = f"use {path}={round(value)}" if finite else "use a whole number"
    return f"{path}={_shorten(value)} is not an integer", hint


def _out_of_bounds(path: str, value: Any, context: Mapping[str, Any]) -> Found:
    rule = next(rule for rule in BOUNDS if rule in context)
    limit = context[rule]
    hint = f"use {path}={limit:g}" if rule in ("ge", "le") else None
    return f"{path}={_shorten(value)} must be {BOUNDS[rule]} {limit:g}", hint


def _unknown(path: str, value: Any, context: Mapping[str, Any]) -> Found:
    return f"{path}={_shorten(value)} is unknown", f"use {context['expected']}"


def _is_not(what: str, hint: str | None = None) -> Callable[[str, Any, Any], Found]:
    def sentence(path: str, value: Any, _context: Any) -> Found:
        return f"{path}={_shorten(value)} is not {what}", hint

    return sentence


BOUNDS = {"ge": "at least", "le": "at most", "gt": "above", "lt": "below"}
SENTENCES: Mapping[str, Callable[[str, Any, Any], Found]] = {
    "missing": _missing,
    "int_type": _not_an_integer,
    "int_from_float": _not_an_integer,
    "float_type": _is_not("a number", "use a number"),
    "finite_number": _is_not("a finite number", "use a finite number"),
    "greater_than_equal": _out_of_bounds,
    "less_than_equal": _out_of_bounds,
    "greater_than": _out_of_bounds,
    "less_than": _out_of_bounds,
    "literal_error": _unknown,
    "string_type": _is_not("text", "write it in quotes"),
    "string_unicode": _is_not("text", "remove the broken characters"),
    "string_too_short": _is_not("a name: it is empty", "write some text, or remove the field"),
    "bool_type": _is_not("true or false", "use true or false"),
    "tuple_type": _is_not("a list", "write it in brackets"),
    "model_type": _is_not("a table of fields"),
    "model_attributes_type": _is_not("a table of fields"),
}
