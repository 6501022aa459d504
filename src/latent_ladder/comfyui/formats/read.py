"""Reader of workflow files: JSON of either format, or a media file that contains a workflow.

ComfyUI writes the API format to the metadata tag ``prompt`` and the UI format to the tag
``workflow`` of the files it saves. The API format is what ran, with its seeds, so it becomes the
graph; the UI format is available as a document.
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
from latent_ladder.storage.read_file import check_regular_file

MAX_JSON_BYTES = 32 * 1024 * 1024
"""Upper limit of JSON bytes; the largest published LTX workflow has 145 kB."""

MEDIA_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".png", ".webp", ".gif", ".jpg", ".jpeg"}
    | {".flac", ".mp3", ".opus", ".ogg", ".wav"}
)
"""Suffixes of media files that can contain workflows in their metadata."""


@dataclass(frozen=True)
class Workflow:
    """A graph and its source documents; ``ui`` is ``None`` if there is only the API format."""

    graph: Graph
    api: dict[str, Any]
    ui: dict[str, Any] | None = None
    source: str = ""


def read_workflow(source: str | Path) -> Workflow:
    """Return the workflow of a file; ``"-"`` is standard input.

    Raises :class:`WorkflowError` for a file without a workflow; the message says what it contains.
    """
    if str(source) == "-":
        return parse_workflow(_read_limited(sys.stdin.buffer, "standard input"), "standard input")
    path = Path(source)
    if path.suffix.lower() in MEDIA_SUFFIXES and path.is_file():
        return _read_media(path)
    check_regular_file(path, WorkflowError, "workflow")
    try:
        with path.open("rb") as file:
            return parse_workflow(_read_limited(file, path.name), path.name)
    except (OSError, ValueError) as error:
        raise WorkflowError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            "name a .json file, a clip or image made by ComfyUI, or - for standard input",
        ) from error


def parse_workflow(data: bytes, name: str = "the workflow") -> Workflow:
    """Return the workflow of JSON bytes in either format. Raises :class:`WorkflowError`."""
    return workflow_from_document(parse_json(data, name), name)


def workflow_from_document(document: object, name: str = "the workflow") -> Workflow:
    """Return the workflow of a JSON document in either format. Raises :class:`WorkflowError`."""
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
    """Return the workflow in the metadata tags of a media file. Raises :class:`WorkflowError`."""
    ui = _parse_tag(tags, "workflow", name)
    prompt = _parse_tag(tags, "prompt", name)
    if is_api(prompt):
        assert isinstance(prompt, dict)
        return Workflow(read_api(prompt), prompt, ui if is_ui(ui) else None, name)
    if ui is not None:
        return workflow_from_document(ui, name)
    hint = "save it in ComfyUI with metadata, or name the .json file"
    if "latent_ladder" in tags or "request" in tags:
        hint = f"it contains a request: ladder workflow export {name}"
    raise WorkflowError(f"{name} contains no ComfyUI workflow", hint)


def parse_json(data: bytes, name: str) -> object:
    """Return parsed JSON. Raises :class:`WorkflowError` with line and column."""
    if len(data) > MAX_JSON_BYTES:
        raise _too_large(name)
    try:
        return json.loads(data)
    except RecursionError as error:
        raise WorkflowError(f"{name} is nested too deeply to be a workflow") from error
    except ValueError as error:  # also for bytes that are not UTF-8, and for overlong numbers
        kind, reason = _identify_file(data), str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} in line {error.lineno}, column {error.colno}"
        text = f"{name} is {kind}" if kind else f"{name} is not JSON: {reason}"
        raise WorkflowError(text, "name a workflow saved by ComfyUI") from error


def _read_limited(file: BinaryIO, name: str) -> bytes:
    data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise _too_large(name)
    return data


def _too_large(name: str) -> WorkflowError:
    return WorkflowError(
        f"{name} is larger than {MAX_JSON_BYTES // 2**20} MiB, too large for a workflow",
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
    """Return a tag as parsed JSON, or ``None`` if it does not exist.

    Some node packs write both tags into the comment, as one JSON object.
    """
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
    """Return the graph inside a ``/prompt`` request or a history entry, or the document itself."""
    # a node id may be "prompt", so the document itself is tested first
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
            return "its nodes are not a list"
        case dict() if not document:
            return "it is an empty object"
        case dict():
            return f"it is an object with {', '.join(map(str, list(document)[:4]))}"
        case list():
            return "it is a list"
    return f"it is {json.dumps(document)[:40]}"


def _identify_file(data: bytes) -> str:
    """Return the kind of a file by its first bytes, or an empty string if it is unknown."""
    head = data[:16]
    known = {
        b"\x89PNG": "an image: give it the suffix .png",
        b"RIFF": "an image or audio: give it its suffix",
        b"GGUF": "a model file",
        b"PK\x03\x04": "an archive",
        b"<!DOCTYPE": "a web page",
        b"<html": "a web page",
    }
    if not data.strip():
        return "empty"
    if head[4:8] == b"ftyp":
        return "a clip: give it the suffix .mp4"
    return next((text for start, text in known.items() if head.startswith(start)), "")
