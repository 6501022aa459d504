"""Paths in the request of somebody's clip that lead out of the working folder.

A clip carries the request it was made from, and whoever sends it decides what that request names: a
picture at ``/home/you/...`` would be read and shown, a model folder on a network share would be
searched. Such paths are used only where the user allows it. A request in a TOML or JSON file is not
checked: its reader can see it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from latent_ladder.errors import RequestError
from latent_ladder.request.problems import Found

ALLOW_FLAG = "--allow-paths"
"""The option that allows them."""

_PLACES = re.compile(r"^(~|[\\/]|[A-Za-z]:|[a-z][a-z0-9+.-]*://)")


def outside_paths(fields: Mapping[str, Any]) -> dict[str, str]:
    """Field -> path of every file outside of the working folder, and of every model folder.

    ``fields`` is a request as plain data.
    """
    return {name: path for name, path in _named_paths(fields) if _leads_out(name, path)}


def check_outside_paths(
    request: Mapping[str, Any], clip: Mapping[str, Any], named: Iterable[str], source: str
) -> None:
    """Raise :class:`RequestError` that lists the outside paths which ``request`` has from ``clip``.

    ``named`` are paths that the user has written on the command line; ``source`` names the clip.
    """
    from_clip = set(outside_paths(clip).values()) - set(named)
    problems: list[Found] = [
        (
            f"{field}={path} is a path of this machine that {source} names",
            f"{ALLOW_FLAG} uses it; or replace it with another option or --set",
        )
        for field, path in outside_paths(request).items()
        if path in from_clip
    ]
    if problems:
        lines = "\n".join(f"  {text} ({hint})" for text, hint in problems)
        raise RequestError(
            f"{source} names {len(problems)} paths of this machine\n{lines}",
            f"{ALLOW_FLAG} uses them",
            tuple(problems),
        )


def named_paths(fields: Mapping[str, Any]) -> set[str]:
    """All paths in fields of a request."""
    return {path for _, path in _named_paths(fields)}


def _named_paths(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and value of every text that can be a path."""
    yield from _items("images", fields.get("images"), "file")
    video = fields.get("video")
    if isinstance(video, Mapping) and isinstance(video.get("file"), str):
        yield "video.file", video["file"]
    if isinstance(fields.get("audio_in"), str):
        yield "audio_in", fields["audio_in"]
    models = fields.get("models")
    for name, value in models.items() if isinstance(models, Mapping) else ():
        values = value if isinstance(value, list | tuple) else [value]
        yield from ((f"models.{name}", each) for each in values if isinstance(each, str))
    stages = fields.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list | tuple) else ()):
        if isinstance(stage, Mapping):
            yield from _items(f"stages[{i}].loras", stage.get("loras"), "name")
            for name in ("file", "name"):
                if isinstance(stage.get(name), str):
                    yield f"stages[{i}].{name}", stage[name]


def _items(name: str, values: object, field: str) -> Iterator[tuple[str, str]]:
    for i, value in enumerate(values if isinstance(values, list | tuple) else ()):
        if isinstance(value, Mapping) and isinstance(value.get(field), str):
            yield f"{name}[{i}].{field}", value[field]


def _leads_out(field: str, path: str) -> bool:
    """True for a model folder, and for a path that is absolute or leads upwards."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return field == "models.folders" or bool(_PLACES.match(path)) or ".." in parts
