"""Import and export as a whole: a workflow to a request and what to say of it, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latent_ladder.comfyui.exporter.embedded_request import (
    find_payload,
    graph_in,
    merged,
    payload,
    request_in,
    with_payload,
)
from latent_ladder.comfyui.exporter.exporter import build
from latent_ladder.comfyui.exporter.file_names import FileNames
from latent_ladder.comfyui.exporter.lossy_fields import not_carried
from latent_ladder.comfyui.exporter.ui_layout import to_ui
from latent_ladder.comfyui.formats.read import Workflow
from latent_ladder.comfyui.importer.graph_walker import Lost
from latent_ladder.comfyui.importer.importer import recognise
from latent_ladder.comfyui.importer.preset_match import Nearest, nearest_preset
from latent_ladder.errors import LadderError
from latent_ladder.request.model import Request

Format = Literal["ui", "api"]


@dataclass(frozen=True)
class Imported:
    """A workflow's request, the preset next to it, and what it could not carry.

    ``embedded``: the graph is an export of ours, and its request supplied what nodes cannot say.
    """

    request: Request
    nearest: Nearest
    lost: tuple[Lost, ...]
    embedded: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``ladder workflow import --json`` prints."""
        return {
            "request": self.request.to_dict(),
            "preset": self.nearest.preset,
            "equal": self.nearest.equal,
            "differences": [str(d) for d in self.nearest.differences],
            "lost": [one._asdict() for one in self.lost],
        }


def import_workflow(workflow: Workflow, node: str | None = None) -> Imported:
    """The request of a workflow. Raises what :func:`recognise` raises."""
    found = recognise(workflow.graph, node)
    carried = find_payload(workflow.ui) or find_payload(workflow.api)
    own = None if carried is None else _own(carried, found.request)
    if own is not None:
        return Imported(own, nearest_preset(own), found.lost, embedded=True)
    near = nearest_preset(found.request)
    request = found.request
    if near.equal:
        request = request.model_copy(update={"preset": near.preset})
    return Imported(request, near, found.lost)


def _own(carried: Mapping[str, Any], now: Request) -> Request | None:
    """The request of an export with what was edited since; ``None`` where it is damaged."""
    request, graph = request_in(carried), graph_in(carried)
    if request is None or graph is None:
        return None
    try:
        before = recognise(graph).request
        return merged(request, before, now)
    except LadderError:  # the graph alone is good enough then
        return None


def export_workflow(request: Request, files: FileNames, form: Format) -> dict[str, Any]:
    """The document of a request in ComfyUI's UI or API format. Raises :class:`RequestError`."""
    drawing = build(request, files)
    if form == "api":
        return with_payload(drawing.graph, request)
    return to_ui(drawing, payload(request, drawing.graph))


def left_out(request: Request) -> list[str]:
    """What the nodes of an export do not say, one sentence a field."""
    return [f"{field}: {text}" for field, text in not_carried(request)]
