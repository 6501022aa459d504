"""Files that contain a request: TOML, JSON, or a clip that was made from one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.size_limits import MAX_FILE_BYTES
from latent_ladder.storage.read_file import read_small_text

METADATA_KEY = "latent_ladder"
"""The metadata tag of a clip that contains its request."""


def clip_metadata(request: Request) -> dict[str, str]:
    """The metadata tags of a clip: its request, and the prompt as the standard comment."""
    from latent_ladder._version import __version__

    body = {"version": __version__, "request": request.to_dict()}
    return {METADATA_KEY: json.dumps(body, ensure_ascii=False), "comment": request.prompt}


def request_of_clip(path: Path) -> Request:
    """The request embedded in a clip. Raises :class:`RequestError` when there is none."""
    from latent_ladder.media.video_reader import read_metadata

    tags = read_metadata(path)
    text = tags.get(METADATA_KEY)
    if text is None and any(_is_workflow(tags.get(name, "")) for name in WORKFLOW_TAGS):
        raise _workflow_error(path)
    if text is None:
        raise RequestError(
            f"{path.name} contains no request of latent-ladder",
            "only clips made by `ladder` have one; use a .toml or .json request instead",
        )
    try:
        fields: Mapping[str, Any] = json.loads(text)["request"]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"the request in {path.name} is damaged: {error}") from error
    return Request.from_dict(fields)


WORKFLOW_TAGS = ("workflow", "prompt")
"""Metadata tags in which ComfyUI stores a workflow."""

READERS: Mapping[str, Callable[[str], Request]] = {
    ".toml": Request.from_toml,
    ".json": Request.from_json,
}


def read_request(path: Path) -> Request:
    """The request in a TOML or JSON file, or embedded in a clip."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        return request_of_clip(path)
    text = read_small_text(path, MAX_FILE_BYTES, RequestError, "request")
    if _is_workflow(text):
        raise _workflow_error(path)
    return reader(text)


def _is_workflow(text: str) -> bool:
    """True for JSON of a ComfyUI workflow, in either of its formats."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(table, dict):
        return False
    nodes = table.get("nodes")
    return isinstance(nodes, list) or any(
        isinstance(node, dict) and "class_type" in node for node in table.values()
    )


def _workflow_error(path: Path) -> RequestError:
    return RequestError(
        f"{path.name} contains a ComfyUI workflow, not a request",
        f"convert it: ladder workflow import {path} -o request.toml",
    )
