"""Import of workflows as requests, and export of requests as workflows."""

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
from latent_ladder.comfyui.versions import ModelConvention
from latent_ladder.errors import LadderError
from latent_ladder.request.model import Request

Format = Literal["ui", "api"]


@dataclass(frozen=True)
class ImportedWorkflow:
    """The request of a workflow, its closest preset, and settings that were lost.

    ``embedded``: the workflow is an export of this program, and its embedded request supplied the
    fields that no node can express.
    """

    request: Request
    preset_match: PresetMatch
    losses: tuple[Loss, ...]
    embedded: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data for ``--json``."""
        return {
            "request": self.request.to_dict(),
            "preset": self.preset_match.preset,
            "equal": self.preset_match.equal,
            "differences": [str(d) for d in self.preset_match.differences],
            "lost": [X._asdict() for X in self.losses],
        }


def import_workflow(
    workflow: Workflow, node: str | None = None, convention: ModelConvention | None = None
) -> ImportedWorkflow:
    """Import a workflow as a request.

    ``node`` is the saving node (id, title or file prefix), needed if there are several.
    ``convention``: ``model_convention`` of the request; ``None`` is that of an embedded request,
    else of the current ComfyUI. Raises :class:`WorkflowError` and :class:`RequestError` as
    :func:`import_graph` does.
    """
    imported = import_graph(workflow.graph, node)
    payload = find_payload(workflow.ui) or find_payload(workflow.api)
    merged = None if payload is None else _merge_embedded_request(payload, imported.request)
    if merged is not None:
        if convention is not None:
            merged = merged.model_copy(update={"model_convention": convention})
        return ImportedWorkflow(merged, match_preset(merged), imported.losses, embedded=True)
    match = match_preset(imported.request)
    as_comfyui = {"model_convention": convention or "comfyui", "image_resize": "comfyui"}
    request = imported.request.model_copy(update=as_comfyui)
    if match.equal:
        request = request.model_copy(update={"preset": match.preset})
    return ImportedWorkflow(request, match, imported.losses)


def _merge_embedded_request(payload: Mapping[str, Any], after: Request) -> Request | None:
    """Return the embedded request with all edits since the export, or ``None`` if it is damaged."""
    request, graph = payload_request(payload), payload_graph(payload)
    if request is None or graph is None:
        return None
    try:
        before = import_graph(graph).request
        return merge_edits(request, before, after)
    except LadderError:  # then the import of the graph alone is used
        return None


def export_workflow(request: Request, files: FileNames, form: Format) -> dict[str, Any]:
    """Export a request as a document in ComfyUI's UI or API format.

    Raises :class:`RequestError` if no ComfyUI node can do what the request says.
    """
    annotated = build_graph(request, files)
    if form == "api":
        return embed_in_api_document(annotated.graph, request)
    return layout_graph(annotated, make_payload(request, annotated.graph))


def lossy_field_messages(request: Request) -> list[str]:
    """Return a sentence for each field that the nodes of an export cannot express."""
    return [f"{field}: {text}" for field, text in find_lossy_fields(request)]
