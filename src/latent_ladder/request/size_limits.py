"""Limits of a request's texts and lists, checked before anything else looks at the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_ladder.request.problems import Found

MAX_TEXT = 100_000
"""Most characters of one text; an encoder reads about a thousand words of a prompt."""
MAX_STAGES = 32
"""Most stages of a request; a pass more makes a clip of this kind no better long before."""
MAX_ITEMS = 10_000
"""Most items of any other list, such as sigmas or images."""
MAX_DEPTH = 20
MAX_FILE_BYTES = 4 * 2**20
"""Largest request file."""


def size_problems(fields: Any) -> list[Found]:
    """Texts and lists of raw request data that are too long, each as a problem."""
    problems: list[Found] = []
    todo: list[tuple[str, Any, int]] = [("", fields, 0)]
    while todo and not problems:
        name, value, depth = todo.pop()
        if depth > MAX_DEPTH:
            problems.append((f"{name or 'the request'} is nested too deep", "use plain tables"))
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            text = f"{name} is {len(value):,} characters long, expected at most {MAX_TEXT:,}"
            problems.append((text, "shorten it"))
        elif isinstance(value, Mapping):
            inner = ((f"{name}.{key}" if name else str(key), item) for key, item in value.items())
            todo += [(path, item, depth + 1) for path, item in inner]
        elif isinstance(value, list | tuple):
            limit = MAX_STAGES if name == "stages" else MAX_ITEMS
            if len(value) > limit:
                text = f"{name} has {len(value):,} entries, expected at most {limit:,}"
                problems.append((text, "leave some out"))
            else:
                todo += [(f"{name}[{i}]", item, depth + 1) for i, item in enumerate(value)]
    return problems
