"""A preset and its ComfyUI graph give bit-identical clips on the embedded pocket model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import av
import pytest
import torch
from helpers.workflow_graphs import engine
from helpers.workflow_shapes import NEGATIVE, POCKET, Api, template, two_stage
from safetensors.torch import load_file
from torch import Tensor

from latent_ladder.checkpoints.selection import (
    EMBEDDED,
    Library,
    model_folders,
    scan,
    select_models,
)
from latent_ladder.comfyui.conversion import export_workflow, import_workflow
from latent_ladder.comfyui.executor import execute
from latent_ladder.comfyui.exporter.file_names import file_names_for
from latent_ladder.comfyui.formats.read import read_workflow, workflow_from_document
from latent_ladder.pipeline import run as pipeline
from latent_ladder.pipeline.plan import make_plan
from latent_ladder.request.files import read_request
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import Store

pytestmark = pytest.mark.slow

PROMPT = "a large plain red circle moving right over blue hills"
SMALL = {"width": 128, "height": 128, "frames": 9, "fps": "24"}


class Clip(NamedTuple):
    """The latents of a clip and the hashes of its encoded streams."""

    latents: Tensor
    streams: dict[str, str]


@pytest.fixture(scope="module")
def library() -> Library:
    return scan(model_folders(environ={}))


def for_pocket(preset: str, **fields: Any) -> Request:
    """The request of a preset for published weights, under the name of the pocket's own preset.

    A preset for published weights refuses the pocket (:func:`check_preset`); its fields do not.
    """
    request = Request.from_preset(preset, prompt=PROMPT, **fields)
    return Request.from_dict({**request.to_dict(), "preset": "pocket"})


def run_request(request: Request, library: Library, folder: Path) -> Clip:
    """Return the clip that ``ladder make`` writes."""
    store, clip = Store(folder / "requests"), folder / "request.mp4"
    pipeline.execute(pipeline.prepare(request, library, store), clip, pipeline.RunOptions())
    plan = make_plan(request, select_models(library, request.models.choices), library)
    artefact = store.get(plan.latents.key)
    assert artefact is not None
    return Clip(artefact.load()["video"], streams(clip))


def run_graph(document: Api, run: str, library: Library, folder: Path) -> Clip:
    """Return the clip that ``ladder workflow run`` writes; ``run`` is its last sampling node."""
    saved = {"samples": [run, 0], "filename_prefix": "latents"}
    document = {**document, "latents": {"class_type": "SaveLatent", "inputs": saved}}
    work = engine(folder, library)
    work.convention = "ltx"  # presets follow the official code
    shown = execute(workflow_from_document(document).graph, work)
    clips = [entry for one in shown.values() for entry in one.get("images", ())]
    saved_latents = [entry for one in shown.values() for entry in one.get("latents", ())]
    output = folder / "output"
    latents = load_file(output / saved_latents[0]["filename"])["latent_tensor"]
    return Clip(latents, streams(output / clips[0]["subfolder"] / clips[0]["filename"]))


def streams(clip: Path) -> dict[str, str]:
    """Return a hash of the packets of each stream; equal packets decode to equal frames."""
    found: dict[str, Any] = {}
    with av.open(str(clip)) as container:
        for packet in container.demux():
            kind = packet.stream.type
            found.setdefault(kind, hashlib.sha256()).update(bytes(packet))
    return {kind: digest.hexdigest() for kind, digest in found.items()}


def assert_equal(one: Clip, other: Clip) -> None:
    assert torch.equal(one.latents, other.latents)
    assert one.streams == other.streams
    assert set(one.streams) == {"video", "audio"}


def test_lightricks_workflow(library: Library, tmp_path: Path) -> None:
    # 8 latents per side: two tiles of 7 that overlap by 6
    graph = two_stage(POCKET, (128, 128), 9, PROMPT, tiles=2)
    small = {**SMALL, "width": 256, "height": 256}
    request = for_pocket("lightricks-workflow", **small)
    assert request.decode.grid == (2, 2)
    found = import_workflow(workflow_from_document(graph))
    assert found.preset_match.preset == "lightricks-workflow"
    assert {d.path for d in found.preset_match.differences} == {"width", "height", "frames"}
    assert_equal(
        run_request(request, library, tmp_path), run_graph(graph, "run 2", library, tmp_path)
    )


def test_comfy_template(library: Library, tmp_path: Path) -> None:
    graph = template(POCKET, (128, 128), 1, 24, PROMPT)
    graph["length"]["inputs"] = {"expression": "a * b / 3 + 1"} | {
        name: link for name, link in graph["length"]["inputs"].items() if name != "expression"
    }
    request = for_pocket("comfy-template", **SMALL)
    assert request.negative_prompt == NEGATIVE
    assert_equal(
        run_request(request, library, tmp_path), run_graph(graph, "run 2", library, tmp_path)
    )


def test_an_export_runs_and_its_clip_imports_and_exports(library: Library, tmp_path: Path) -> None:
    """Use the pocket preset with guidance, a schedule and a crop."""
    small = {**SMALL, "width": 120, "height": 100, "seed": 4}
    table = Request.from_preset("pocket", prompt=PROMPT, **small).to_dict()
    table["stages"][0]["schedule"]["steps"] = 4
    request = Request.from_dict(table)
    files = file_names_for(request, [EMBEDDED])
    graph = export_workflow(request, files, "api")
    (run,) = [
        name for name, node in graph.items() if node["class_type"] == "SamplerCustomAdvanced"
    ][1:]
    assert_equal(run_request(request, library, tmp_path), run_graph(graph, run, library, tmp_path))
    (clip,) = (tmp_path / "output" / "video").glob("*.mp4")
    assert import_workflow(read_workflow(clip)).request.frames == request.frames
    embedded = read_request(tmp_path / "request.mp4")
    ui = json.loads(json.dumps(export_workflow(embedded, files, "ui")))
    assert import_workflow(workflow_from_document(ui)).request == embedded
