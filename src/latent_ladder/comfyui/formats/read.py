"""A workflow from a file, whichever it is: JSON of either format, or a clip or picture it made.

ComfyUI writes the API format as tag ``prompt`` and the UI format as tag ``workflow`` into what it
saves. The first is what ran, seeds and all, so it is the graph; the second is kept to show.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from latent_ladder.comfyui.formats.api import is_api, read_api
from latent_ladder.comfyui.formats.ui import is_ui, read_ui
from latent_ladder.comfyui.graph import Graph
from latent_ladder.errors import LadderError, WorkflowError

MAX_JSON_BYTES = 32 * 1024 * 1024
"""Bytes of JSON that are read; the largest published LTX workflow has 145 kB."""

MEDIA_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".png", ".webp", ".gif", ".jpg", ".jpeg"}
    | {".flac", ".mp3", ".opus", ".ogg", ".wav"}
)
"""Endings of files that carry workflows in their tags."""


@dataclass(frozen=True)
class Workflow:
    """A graph and the documents it came from: ``ui`` is missing where there was API format only."""

    graph: Graph
    api: dict[str, Any]
    ui: dict[str, Any] | None = None
    source: str = ""


def read_workflow(source: str | Path) -> Workflow:
    """The workflow in a file; ``"-"`` is standard input.

    Raises :class:`WorkflowError` for what is no workflow, saying what it is instead.
    """
    if str(source) == "-":
        return parse_workflow(_read_limited(sys.stdin.buffer, "standard input"), "standard input")
    path = Path(source)
    if path.suffix.lower() in MEDIA_SUFFIXES and path.is_file():
        return _read_media(path)
    try:
        with path.open("rb") as file:
            return parse_workflow(_read_limited(file, path.name), path.name)
    except (OSError, ValueError) as error:
        raise WorkflowError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            "name a .json file, a clip or picture that ComfyUI made, or - for standard input",
        ) from error


def parse_workflow(data: bytes, name: str = "the workflow") -> Workflow:
    """The workflow in JSON of either format. Raises :class:`WorkflowError`."""
    return workflow_from_document(parse_json(data, name), name)


def workflow_from_document(document: object, name: str = "the workflow") -> Workflow:
    """The workflow in a parsed JSON document. Raises :class:`WorkflowError`."""
    document = _unwrap(document)
    if is_ui(document):
        assert isinstance(document, dict)
        graph = read_ui(document)
        return Workflow(graph, graph.to_api(), document, name)
    if is_api(document):
        assert isinstance(document, dict)
        return Workflow(read_api(document), document, None, name)
    raise WorkflowError(
        f"{name} is no ComfyUI workflow: {_describe_document(document)}",
        'in ComfyUI, save it with "Save" or "Export (API)"',
    )


def workflow_from_tags(tags: Mapping[str, str], name: str) -> Workflow:
    """The workflow in the tags of a clip or picture. Raises :class:`WorkflowError`."""
    ui = _parse_tag(tags, "workflow", name)
    prompt = _parse_tag(tags, "prompt", name)
    if is_api(prompt):
        assert isinstance(prompt, dict)
        return Workflow(read_api(prompt), prompt, ui if is_ui(ui) else None, name)
    if ui is not None:
        return workflow_from_document(ui, name)
    hint = "save it in ComfyUI with metadata, or name the .json file"
    if "latent_ladder" in tags or "request" in tags:
        hint = f"it was made from a request: ladder workflow export {name}"
    raise WorkflowError(f"{name} carries no ComfyUI workflow", hint)


def parse_json(data: bytes, name: str) -> object:
    """JSON as Python has it. Raises :class:`WorkflowError` with line and column."""
    if len(data) > MAX_JSON_BYTES:
        raise _too_large(name)
    try:
        return json.loads(data)
    except RecursionError as error:
        raise WorkflowError(f"{name} nests its values too deeply to be a workflow") from error
    except ValueError as error:  # also for bytes that are no text, and for endless numbers
        found, reason = _identify_file(data), str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} in line {error.lineno}, column {error.colno}"
        text = f"{name} is {found}" if found else f"{name} is no JSON: {reason}"
        raise WorkflowError(text, "name a workflow saved by ComfyUI") from error


def _read_limited(file: BinaryIO, name: str) -> bytes:
    data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise _too_large(name)
    return data


def _too_large(name: str) -> WorkflowError:
    return WorkflowError(
        f"{name} is larger than {MAX_JSON_BYTES // 2**20} MiB, which is no workflow",
        "name the .json file that ComfyUI saved",
    )


def _read_media(path: Path) -> Workflow:
    from latent_ladder.media.video_reader import read_metadata

    try:
        tags = read_metadata(path)
    except WorkflowError:
        raise
    except LadderError as error:
        raise WorkflowError(f"{path.name} cannot be read: {error}", error.hint) from error
    return workflow_from_tags(tags, path.name)


def _parse_tag(tags: Mapping[str, str], key: str, name: str) -> Any:
    """A tag as JSON; some packs put both into the comment. ``None`` where there is none."""
    text = tags.get(key)
    if text is None and "comment" in tags and tags["comment"].lstrip().startswith("{"):
        try:
            comment = json.loads(tags["comment"])
        except ValueError:
            return None
        text = comment.get(key) if isinstance(comment, dict) else None
    if not isinstance(text, str):
        return text
    return parse_json(text.encode("utf-8", "surrogatepass"), f"the tag {key} of {name}")


def _unwrap(document: object) -> object:
    """The graph in what clients post, and in what the history gives."""
    # a node may be called prompt, so a graph is looked for first
    if isinstance(document, dict) and not is_ui(document) and not is_api(document):
        inner = document.get("prompt")
        if isinstance(inner, dict):
            return inner
        inner = document.get("workflow")
        if is_ui(inner):
            return inner
    return document


def _describe_document(document: object) -> str:
    match document:
        case {"nodes": _}:
            return "its nodes are no list"
        case dict() if not document:
            return "it is an empty object"
        case dict():
            return f"it is an object with {', '.join(map(str, list(document)[:4]))}"
        case list():
            return "it is a list"
    return f"it is {json.dumps(document)[:40]}"


def _identify_file(data: bytes) -> str:
    """What a file is that is no JSON, as far as its first bytes tell; empty if they do not."""
    head = data[:16]
    known = {
        b"\x89PNG": "a picture; give it its ending .png",
        b"RIFF": "a picture or sound; give it its ending",
        b"GGUF": "a model file",
        b"PK\x03\x04": "an archive",
        b"<!DOCTYPE": "a web page",
        b"<html": "a web page",
    }
    if not data.strip():
        return "empty"
    if head[4:8] == b"ftyp":
        return "a clip; give it its ending .mp4"
    return next((text for start, text in known.items() if head.startswith(start)), "")
