"""Requests as graphs for the queue and the editor, with the names of installed model files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latent_ladder.checkpoints.search_paths import ModelFolder
from latent_ladder.checkpoints.selection import EMBEDDED, scan, select_models
from latent_ladder.comfyui.conversion import Format, export_workflow
from latent_ladder.comfyui.exporter.file_names import FileNames, library_names, published_names
from latent_ladder.errors import CheckpointError
from latent_ladder.pipeline.preparation import default_preset
from latent_ladder.request.model import Request

TEMPLATE_PROMPT = "a red ball rolls to the right over a striped floor"


def export_request(
    request: Request, folders: Sequence[ModelFolder], form: Format
) -> dict[str, Any]:
    """The graph of a request that runs with the installed files.

    Raises :class:`CheckpointError` if a file is missing, :class:`RequestError` if no node does it.
    """
    return export_workflow(request, _installed_names(request, folders), form)


def export_preset(name: str, folders: Sequence[ModelFolder]) -> dict[str, Any]:
    """A preset as a workflow for the editor; missing files have their published names."""
    request = Request.from_preset(name, prompt=TEMPLATE_PROMPT)
    try:
        files = _installed_names(request, folders)
    except CheckpointError:
        files = published_names(request)
    return export_workflow(request, files, "ui")


def preset_of_installed(folders: Sequence[ModelFolder]) -> str:
    """The preset for the model files that are installed. Raises :class:`CheckpointError`."""
    return default_preset(scan(folders))


def _installed_names(request: Request, folders: Sequence[ModelFolder]) -> FileNames:
    """The files of the embedded model for its preset, else those in the folders."""
    embedded = scan([EMBEDDED])
    if select_models(embedded).preset == request.preset:
        return library_names(request, embedded)
    return library_names(request, scan([folder for folder in folders if not folder.is_embedded]))
