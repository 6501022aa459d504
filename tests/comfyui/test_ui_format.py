"""The UI format: reroutes, subgraphs and other nodes of the interface only are resolved."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.workflow_ui_graphs import UUID, UiGraph, nested_subgraphs, numbers

from latent_ladder.comfyui.formats.ui import read_ui
from latent_ladder.comfyui.formats.ui_widgets import widget_values
from latent_ladder.comfyui.graph import Graph, Link, ModelFile
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.schema import NodeType
from latent_ladder.errors import WorkflowError


def latent(graph: Graph) -> Any:
    """Return the ``length`` of the only empty latent of a graph."""
    return next(
        n.inputs["length"] for n in graph.nodes.values() if n.class_type == "EmptyLTXVLatentVideo"
    )


@pytest.mark.parametrize(
    "chain", [(), ("Reroute",), ("Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss")]
)
def test_reroutes_are_followed(chain: tuple[str, ...]) -> None:
    graph = read_ui(numbers(*chain))
    assert latent(graph) == Link("1", 0)
    assert {n.class_type for n in graph.nodes.values()} == {
        "PrimitiveInt", "EmptyLTXVLatentVideo", "SaveLatent",
    }  # fmt: skip


def test_a_muted_source_keeps_the_widget_value() -> None:
    document = numbers("Reroute", mode=2)
    assert latent(read_ui(document)) == 97


def test_a_bypassed_node_passes_through_a_fitting_input() -> None:
    ui = UiGraph()
    one = ui.add("PrimitiveInt", [7, "fixed"], outs=["INT"])
    image = ui.add("EmptyImage", [8, 8, 1, 0], outs=["IMAGE"])
    between = ui.add("SomeoneElse", mode=4, outs=["INT", "IMAGE"])
    ui.link(image, 0, between, "a", "IMAGE")
    ui.link(one, 0, between, "b", "INT")
    size = ui.add("EmptyLTXVLatentVideo", [64, 64, 97, 1], outs=["LATENT"])
    ui.link(between, 0, size, "length", "INT", widget=True)
    show = ui.add("PreviewImage")
    ui.link(between, 1, show, "images", "IMAGE")
    graph = read_ui(ui.document())
    assert graph.nodes["4"].inputs["length"] == Link("1", 0)
    assert graph.nodes["5"].inputs["images"] == Link("2", 0)


def test_get_nodes_find_set_nodes_by_name_also_from_a_subgraph() -> None:
    inner = UiGraph()
    get = inner.add("GetNode", ["size"], outs=["INT"])
    size = inner.add("EmptyLTXVLatentVideo", [64, 64, 97, 1], outs=["LATENT"])
    inner.link(get, 0, size, "length", "INT", widget=True)
    inner.output(size, 0, 0, "LATENT")
    ui = UiGraph()
    one = ui.add("PrimitiveInt", [7, "fixed"], outs=["INT"])
    setter = ui.add("SetNode", ["size"], outs=["*"])
    ui.link(one, 0, setter, "INT", "INT")
    shown = ui.add(UUID, key=9, outs=["LATENT"])
    save = ui.add("SaveLatent", ["x"])
    ui.link(shown, 0, save, "samples", "LATENT")
    document = ui.document(definitions={"subgraphs": [inner.definition(UUID, [])]})
    graph = read_ui(document)
    assert graph.nodes["9:2"].inputs["length"] == Link("1", 0)
    assert graph.nodes["4"].inputs["samples"] == Link("9:2", 0)
    setter["widgets_values"] = ["other"]
    with pytest.raises(
        WorkflowError, match=r"node 9:1 \(GetNode\): no Set node has the name 'size'"
    ):
        read_ui(document)


def test_a_primitive_node_is_a_literal_value() -> None:
    ui = UiGraph()
    one = ui.add("PrimitiveNode", [41, "fixed"], outs=["INT"])
    size = ui.add("EmptyLTXVLatentVideo", [64, 64, 97, 1], outs=["LATENT"])
    ui.link(one, 0, size, "length", "INT", widget=True)
    assert latent(read_ui(ui.document())) == 41


@pytest.mark.parametrize("objects", [False, True], ids=["0.4", "1.0"])
@pytest.mark.parametrize(
    ("values", "link", "expected"),
    [
        ({}, False, 97),
        ({"widgets_values": [33]}, False, 33),
        ({"widgets_values": [33], "widgets_values_named": {"n": 41}}, False, 41),
        ({"widgets_values": [33]}, True, Link("6", 0)),
    ],
    ids=["own", "promoted", "named", "linked"],
)
def test_promoted_widgets_of_nested_subgraphs(
    values: dict[str, Any], link: bool, expected: Any, objects: bool
) -> None:
    graph = read_ui(nested_subgraphs(values, link, objects))
    assert graph.nodes["5:1:1"].inputs["length"] == expected
    assert graph.nodes["8"].inputs["samples"] == Link("5:1:1", 0)


@pytest.mark.parametrize(
    "values",
    [
        {"widgets_values_named": {"gone": 1}},
        {"inputs": [{"name": "gone", "type": "INT", "link": None, "widget": {"name": "gone"}}]},
        {"properties": {"proxyWidgets": [["77", "length"]]}},
    ],
)
def test_a_promoted_widget_that_does_not_exist(values: dict[str, Any]) -> None:
    with pytest.raises(WorkflowError, match=r'node 5 \(.*"my part"\): it shows .*widget') as caught:
        read_ui(nested_subgraphs(values))
    assert caught.value.node_id == "5"


def test_missing_and_recursive_subgraphs() -> None:
    document = nested_subgraphs({})
    document["definitions"]["subgraphs"][0]["definitions"] = {}
    with pytest.raises(WorkflowError, match=r"node 5:1 .*not defined in the file"):
        read_ui(document)
    ui = UiGraph()
    ui.add(UUID)
    looped = UiGraph()
    looped.add(UUID)
    definition = looped.definition(UUID, [])
    with pytest.raises(WorkflowError, match=r"node 1:1 .*'Inner' contains itself"):
        read_ui(ui.document(definitions={"subgraphs": [definition]}))


def test_nested_subgraphs_are_limited() -> None:
    ids = [f"{n:08d}-2222-3333-4444-555555555555" for n in range(30)]
    definitions = []
    for key, below in zip(ids, [*ids[1:], "PrimitiveInt"], strict=True):
        ui = UiGraph()
        for _ in range(10):
            ui.add(below)
        definitions.append(ui.definition(key, []))
    ui = UiGraph()
    ui.add(ids[0])
    with pytest.raises(WorkflowError, match="nodes, at most 20000"):
        read_ui(ui.document(definitions={"subgraphs": definitions}))


def test_broken_links_name_their_node() -> None:
    document = numbers()
    document["nodes"][1]["inputs"][0]["link"] = 99
    with pytest.raises(WorkflowError, match=r"node 2 .*input length has link 99, which is not"):
        read_ui(document)
    document = numbers()
    document["links"][0][1] = 55
    with pytest.raises(WorkflowError, match="comes from node 55, which does not exist"):
        read_ui(document)
    document = numbers()
    document["links"][0][2] = 3
    with pytest.raises(WorkflowError, match="PrimitiveInt has 1 output"):
        read_ui(document)


def test_a_cycle_of_reroutes() -> None:
    ui = UiGraph()
    first, second = ui.add("Reroute", outs=["*"]), ui.add("Reroute", outs=["*"])
    ui.link(second, 0, first, "", "*")
    ui.link(first, 0, second, "", "*")
    size = ui.add("EmptyLTXVLatentVideo", [64, 64, 97, 1], outs=["LATENT"])
    ui.link(second, 0, size, "length", "INT", widget=True)
    with pytest.raises(WorkflowError, match=r"node 3 .*cycle of reroutes"):
        read_ui(ui.document())


def test_stale_widget_values_are_found() -> None:
    (finding,) = read_ui(numbers()).findings
    assert finding == ("stale_value", "length shows 97, but its link gives 7", "2")


def test_use_everywhere_links_are_read() -> None:
    ui = UiGraph()
    ui.add("CheckpointLoaderSimple", ["x.safetensors"], outs=["MODEL", "CLIP", "VAE"])
    text = ui.add("CLIPTextEncode", ["hello"], outs=["CONDITIONING"])
    text["inputs"].append({"name": "clip", "type": "CLIP", "link": None})
    implied = {"downstream": 2, "downstream_slot": 0, "upstream": 1, "upstream_slot": 1}
    graph = read_ui(ui.document(extra={"ue_links": [implied]}))
    assert graph.nodes["2"].inputs == {"text": "hello", "clip": Link("1", 1)}


def test_titles_packs_and_model_urls_are_read() -> None:
    ui = UiGraph()
    ui.add(
        "Mystery",
        {"a": 1},
        title="what is this",
        properties={
            "cnr_id": "some-pack",
            "models": [{"name": "m.safetensors", "url": "https://x", "directory": "loras"}],
        },
    )
    graph = read_ui(ui.document())
    node = graph.nodes["1"]
    assert (node.title, node.pack, node.inputs) == ("what is this", "some-pack", {"a": 1})
    assert graph.models == (ModelFile("m.safetensors", "https://x", "loras"),)
    assert str(node.error("no")).startswith('node 1 (Mystery "what is this"): no')


# --- widget values -------------------------------------------------------------------------------


def values(kind: str, listed: Any, **more: Any) -> dict[str, Any]:
    """Return the widget values of a node by name."""
    return widget_values(NODE_TYPES[kind], {"widgets_values": listed, **more})


def test_extra_widget_values_are_skipped() -> None:
    listed = [5, "randomize", 30, 4.5, "euler", "simple", 0.4]
    expected = {
        "seed": 5, "steps": 30, "cfg": 4.5, "sampler_name": "euler", "scheduler": "simple",
        "denoise": 0.4,
    }  # fmt: skip
    assert values("KSampler", listed) == expected
    assert values("KSampler", [v for v in listed if v != "randomize"]) == expected
    assert values("LoadImage", ["a.png", "image"]) == {"image": "a.png"}
    assert values("LoadAudio", ["a.wav", None, ""]) == {"audio": "a.wav"}


def test_dynamic_combos_change_the_number_of_values() -> None:
    assert values("ResizeImageMaskNode", ["scale dimensions", 64, 32, "center", "lanczos"]) == {
        "resize_type": "scale dimensions",
        "resize_type.width": 64,
        "resize_type.height": 32,
        "resize_type.crop": "center",
        "scale_method": "lanczos",
    }
    assert values("ResizeImageMaskNode", ["scale longer dimension", 64, "area"]) == {
        "resize_type": "scale longer dimension",
        "resize_type.longer_size": 64,
        "scale_method": "area",
    }
    nested = values("SaveVideo", ["x", "mkv", "av1", "re-encode", 40, "auto"])
    assert nested["format.codec.encoding.crf"] == 40
    assert nested["codec"] == "auto"
    prompt = ["", 2048, "on", 0.7, 64, 0.95, 0.05, 1.05, 9, 0, False, True]
    assert values("TextGenerateLTX2Prompt", prompt)["sampling_mode.seed"] == 9
    assert values("TextGenerateLTX2Prompt", ["", 99, "off", True])["thinking"] is True


def test_values_by_name_win_over_positions() -> None:
    named = {"noise_seed": 8, "control_after_generate": "fixed"}
    assert values("RandomNoise", [7, "fixed"], widgets_values_named=named) == {"noise_seed": 8}
    assert values("RandomNoise", {"noise_seed": 9, "videopreview": {}}) == {"noise_seed": 9}


def test_conflicting_values_are_found() -> None:
    ui = UiGraph()
    ui.add("RandomNoise", [7, "fixed"], widgets_values_named={"noise_seed": 8})
    (finding,) = read_ui(ui.document()).findings
    assert finding.code == "two_values"
    assert "noise_seed is 8 by name and 7 by position" in finding.message


def test_missing_values_are_the_defaults() -> None:
    assert values("CreateVideo", [24]) == {
        "fps": 24, "bit_depth": "auto", "color_space": "sRGB", "codec": "none",
    }  # fmt: skip
    assert values("LTXVScheduler", None)["terminal"] == 0.1


@pytest.mark.parametrize("kind", NODE_TYPES.values(), ids=lambda kind: kind.class_type)
def test_every_definition_reads_its_own_defaults(kind: NodeType) -> None:
    """Values by position are read as ComfyUI writes them: all widgets, extra ones after seeds."""
    listed: list[Any] = []
    for one in kind.visible_inputs({}):
        if one.is_widget:
            listed.append(one.default)
            listed += [
                "fixed" if "fixed" in p or "control" in p else "image" for p in one.extra_widgets
            ]
    expected = {one.name: one.default for one in kind.visible_inputs({}) if one.is_widget}
    assert widget_values(kind, {"widgets_values": listed}) == expected


@pytest.mark.parametrize("kind", NODE_TYPES.values(), ids=lambda kind: kind.class_type)
def test_every_definition_is_valid(kind: NodeType) -> None:
    names = [one.name for one in kind.inputs]
    assert len(set(names)) == len(names)
    for one in kind.visible_inputs({}):
        if one.is_widget and one.options:
            assert one.default in one.options, one.name
        if one.is_widget and one.low is not None and one.high is not None:
            assert isinstance(one.default, int | float)
            assert one.low <= one.default <= one.high, one.name
        for option, below in one.option_inputs.items():
            assert option in one.options
            assert all(inner.name.startswith(f"{one.name}.") for inner in below)
    assert kind.lazy <= set(names)
    assert kind.outputs or kind.is_output or kind.unsupported_reason
