"""Import and export as a whole: a workflow to a request and what to say of it, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latent_ladder.comfyui.exporter.embedded_request import (
    embed_in_api_document,
    find_payload,
    make_payload,
    merge_edits,
    payload_graph,
    payload_request,
)
from latent_ladder.comfyui.exporter.exporter import build_graph
from latent_ladder.comfyui.exporter.file_names import FileNames
from latent_ladder.comfyui.exporter.lossy_fields import find_lossy_fields
from latent_ladder.comfyui.exporter.ui_layout import layout_graph
from latent_ladder.comfyui.formats.read import Workflow
from latent_ladder.comfyui.importer.graph_walker import Loss
from latent_ladder.comfyui.importer.importer import import_graph
from latent_ladder.comfyui.importer.preset_match import PresetMatch, match_preset
from latent_ladder.errors import LadderError
from latent_ladder.request.model import Request

Format = Literal["ui", "api"]


@dataclass(frozen=True)
class ImportedWorkflow:
    """A workflow's request, the preset next to it, and what it could not carry.

    ``embedded``: the graph is an export of ours, and its request supplied what nodes cannot say.
    """

    request: Request
    preset_match: PresetMatch
    losses: tuple[Loss, ...]
    embedded: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``ladder workflow import --json`` prints."""
        return {
            "request": self.request.to_dict(),
            "preset": self.preset_match.preset,
            "equal": self.preset_match.equal,
            "differences": [str(d) for d in self.preset_match.differences],
            "lost": [one._asdict() for one in self.losses],
        }


def import_workflow(workflow: Workflow, node: str | None = None) -> ImportedWorkflow:
    """The request of a workflow. Raises what :func:`import_graph` raises."""
    found = import_graph(workflow.graph, node)
    carried = find_payload(workflow.ui) or find_payload(workflow.api)
    own = None if carried is None else _merge_embedded_request(carried, found.request)
    if own is not None:
        return ImportedWorkflow(own, match_preset(own), found.losses, embedded=True)
    near = match_preset(found.request)
    request = found.request
    if near.equal:
        request = request.model_copy(update={"preset": near.preset})
    return ImportedWorkflow(request, near, found.losses)


def _merge_embedded_request(carried: Mapping[str, Any], now: Request) -> Request | None:
    """The request of an export with what was edited since; ``None`` where it is damaged."""
    request, graph = payload_request(carried), payload_graph(carried)
    if request is None or graph is None:
        return None
    try:
        before = import_graph(graph).request
        return merge_edits(request, before, now)
    except LadderError:  # the graph alone is good enough then
        return None


def export_workflow(request: Request, files: FileNames, form: Format) -> dict[str, Any]:
    """The document of a request in ComfyUI's UI or API format. Raises :class:`RequestError`."""
    drawing = build_graph(request, files)
    if form == "api":
        return embed_in_api_document(drawing.graph, request)
    return layout_graph(drawing, make_payload(request, drawing.graph))


def lossy_field_messages(request: Request) -> list[str]:
    """What the nodes of an export do not say, one sentence a field."""
    return [f"{field}: {text}" for field, text in find_lossy_fields(request)]
