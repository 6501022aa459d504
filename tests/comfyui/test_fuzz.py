"""Broken workflows raise only WorkflowError; valid ones are equal in both formats."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from helpers.mutations import mutate_document
from helpers.workflow_ui_graphs import UiGraph, numbers, two_stage

from latent_ladder.checkpoints.scan import Library
from latent_ladder.comfyui.analysis.check import check_workflow
from latent_ladder.comfyui.analysis.validate import find_problems
from latent_ladder.comfyui.conversion import export_workflow
from latent_ladder.comfyui.exporter.file_names import published_names
from latent_ladder.comfyui.formats.read import parse_workflow, workflow_from_document
from latent_ladder.comfyui.graph import Graph, Link
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.errors import WorkflowError
from latent_ladder.request.model import Request
from latent_ladder.request.presets import preset_names
from latent_ladder.request.stages import SamplingStage


def as_ui(document: dict[str, Any]) -> dict[str, Any]:
    """Return an API graph in the UI format; link types are those of the node definitions."""
    ui = UiGraph()
    graph = workflow_from_document(document).graph
    ui_nodes: dict[str, dict[str, Any]] = {}
    for key, node in graph.nodes.items():
        kind = NODE_TYPES[node.class_type]
        literals = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
        listed: list[Any] = []
        for one in kind.visible_inputs(literals):
            if one.is_widget:
                listed.append(literals.get(one.name, one.default))
                listed += ["fixed" for _ in one.extra_widgets]
        outs = [out.type for out in kind.outputs]
        ui_nodes[key] = ui.add(node.class_type, listed, int(key), title=node.title, outs=outs)
    for key, node in graph.nodes.items():
        widgets = {one.name for one in NODE_TYPES[node.class_type].inputs if one.is_widget}
        for name, link in node.links:
            output = NODE_TYPES[graph.nodes[link.node].class_type].outputs[link.slot].type
            ui.link(ui_nodes[link.node], link.slot, ui_nodes[key], name, output, name in widgets)
    return ui.document()


def with_defaults(graph: Graph) -> dict[str, Any]:
    """Return type, title and inputs of each node, with the defaults of omitted inputs."""
    nodes = {}
    for node in graph.nodes.values():
        literals = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
        shown = NODE_TYPES[node.class_type].visible_inputs(literals)
        defaults = {one.name: one.default for one in shown if one.is_widget}
        nodes[node.id] = (node.class_type, node.title, {**defaults, **node.inputs})
    return nodes


def test_api_to_ui_to_api_is_the_identity() -> None:
    document = two_stage()
    again = workflow_from_document(as_ui(document)).graph
    assert with_defaults(again) == with_defaults(workflow_from_document(document).graph)
    third = workflow_from_document(again.to_api()).graph
    assert third.nodes == again.nodes


@pytest.mark.parametrize("name", preset_names())
def test_exports_in_both_formats_are_equal_and_valid(name: str) -> None:
    request = Request.from_preset(name, prompt="a red ball rolls")
    names = published_names(request)
    from_ui = workflow_from_document(
        json.loads(json.dumps(export_workflow(request, names, "ui")))
    ).graph
    from_api = workflow_from_document(
        json.loads(json.dumps(export_workflow(request, names, "api")))
    ).graph
    assert with_defaults(from_ui) == with_defaults(from_api)
    assert find_problems(from_api) == []
    report = check_workflow(workflow_from_document(from_api.to_api()), Library((), {}))
    sampled = [stage for stage in request.stages if isinstance(stage, SamplingStage)]
    made = next(one for one in report.outputs if one.class_type == "SaveVideo")
    assert (made.size, made.frames) == ((request.width, request.height), request.frames)
    assert made.fps == pytest.approx(float(request.fps))
    assert len(made.stages) == len(sampled)


def _documents() -> dict[str, Any]:
    from helpers.workflow_ui_graphs import nested_subgraphs

    return {
        "api": two_stage(),
        "ui": as_ui(two_stage()),
        "chain": numbers("Reroute", "SetNode"),
        "subgraphs": nested_subgraphs({"widgets_values": [33]}, link=True),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["api", "ui", "chain", "subgraphs"])
def test_broken_graphs_raise_only_workflow_errors(name: str) -> None:
    document, library = _documents()[name], Library((), {})
    outcomes = set()
    for seed in range(250):
        broken = mutate_document(document, random.Random(f"{name}{seed}"))
        try:
            report = check_workflow(workflow_from_document(broken), library)
            json.dumps(report.to_dict(), default=str)
            outcomes.add("read")
        except WorkflowError as error:
            assert str(error)
            outcomes.add("error")
    assert outcomes == {"read", "error"}


def test_broken_bytes_raise_only_workflow_errors() -> None:
    data, rng = json.dumps(two_stage()).encode(), random.Random(4)
    for _ in range(250):
        cut = bytearray(data[: rng.randrange(len(data))])
        for _ in range(rng.randrange(4)):
            if cut:
                cut[rng.randrange(len(cut))] = rng.randrange(256)
        with pytest.raises(WorkflowError):
            parse_workflow(bytes(cut))
