"""Problems of a graph have ComfyUI's error types and are found before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from helpers.workflow_ui_graphs import two_stage

from latent_ladder.comfyui.analysis.validate import (
    Problem,
    find_problems,
    problems_error,
)
from latent_ladder.comfyui.constant_folding import fold_constants, output_nodes, required_nodes
from latent_ladder.comfyui.expressions import evaluate
from latent_ladder.comfyui.file_names import split_folder_tag, unsafe_path_reason
from latent_ladder.comfyui.formats.api import read_api
from latent_ladder.comfyui.graph import Link
from latent_ladder.errors import WorkflowError


class FileLists:
    """File names by folder."""

    def __init__(self, **names: Sequence[str]) -> None:
        self._names = names

    def names(self, folder: str) -> Sequence[str]:
        return [name for one in folder.split(",") for name in self._names.get(one, ())]


FILES = FileLists(
    checkpoints=["dev.safetensors"],
    text_encoders=["sub/gemma.safetensors"],
    loras=["distilled.safetensors"],
    latent_upscale_models=["upscaler-x2.safetensors"],
    input=["a.png"],
)


def problems_of(changes: dict[str, dict[str, Any]], **more: Any) -> list[Problem]:
    """Return the problems of the two-stage graph with changed inputs; ``None`` removes an input."""
    document = two_stage()
    for node, inputs in changes.items():
        if "class_type" in inputs:
            document[node] = inputs
            continue
        merged = {**document[node]["inputs"], **inputs}
        document[node]["inputs"] = {k: v for k, v in merged.items() if v is not None}
    return find_problems(read_api(document), more.pop("files", FILES), **more)


def test_a_valid_graph_has_no_problems() -> None:
    assert problems_of({}) == []


@pytest.mark.parametrize(
    ("node", "inputs", "kind", "message"),
    [
        ("12", {"model": None}, "required_input_missing", "model is missing"),
        ("5", {"clip": None}, "required_input_missing", "clip is missing"),
        ("1", {"ckpt_name": "other.safetensors"}, "value_not_in_list", "not in checkpoints"),
        ("1", {"ckpt_name": ""}, "value_not_in_list", "no file is selected"),
        ("13", {"sampler_name": "eulr"}, "value_not_in_list", "'eulr' is not one of the choices"),
        ("13", {"sampler_name": "uni_pc"}, "value_not_in_list", "uni_pc is not available here"),
        ("8", {"width": 32}, "value_smaller_than_min", "32 is less than 64"),
        ("8", {"width": 99999}, "value_bigger_than_max", "99999 is more than 16384"),
        ("12", {"cfg": 101}, "value_bigger_than_max", "101 is more than 100"),
        ("11", {"noise_seed": -1}, "value_smaller_than_min", "-1 is less than 0"),
        ("11", {"noise_seed": 2**64}, "value_bigger_than_max", "is more than"),
        ("8", {"width": "wide"}, "invalid_input_type", "'wide' is not an integer"),
        ("8", {"width": True}, "invalid_input_type", "True is not an integer"),
        ("12", {"cfg": "nan"}, "invalid_input_type", "'nan' is not a number"),
        ("23", {"last_frame_fix": "no"}, "invalid_input_type", "'no' is neither true nor false"),
        ("5", {"text": {"a": 1}}, "invalid_input_type", "is not text"),
        ("12", {"model": "dev"}, "invalid_input_type", "takes MODEL from a link"),
        ("12", {"model": ["1"]}, "bad_linked_input", "a link is a node id and an output slot"),
        ("12", {"model": ["1", 1]}, "return_type_mismatch", "takes MODEL, but output 1 .* is CLIP"),
        ("8", {"width": ["12", 0]}, "return_type_mismatch", "takes INT, but .* is GUIDER"),
        ("26", {"filename_prefix": "../x"}, "value_not_in_list", "leads out of its folder"),
        ("26", {"filename_prefix": "/etc/x"}, "value_not_in_list", "is an absolute path"),
        ("1", {"ckpt_name": "../../x"}, "value_not_in_list", "leads out of its folder"),
        ("1", {"ckpt_name": "C:\\x\\y"}, "value_not_in_list", "is an absolute path"),
        ("1", {"ckpt_name": "a\\..\\..\\y"}, "value_not_in_list", "leads out of its folder"),
        ("25", {"class_type": "Gone", "inputs": {}}, "missing_node_type", "node type is unknown"),
        ("25", {"class_type": "DWPreprocessor", "inputs": {}}, "missing_node_type", "poses"),
    ],
)
def test_each_problem_has_comfyuis_type_and_its_node(
    node: str, inputs: dict[str, Any], kind: str, message: str
) -> None:
    first, *rest = [p for p in problems_of({node: inputs}) if p.node == node]
    assert first.type == kind
    assert not rest
    with pytest.raises(WorkflowError, match=message) as caught:
        raise problems_error(read_api(two_stage()), [first])
    assert caught.value.node_id == node
    assert f"node {node} (" in caught.value.message


def test_windows_paths_and_64_bit_seeds_are_valid() -> None:
    changes: dict[str, dict[str, Any]] = {
        "2": {"text_encoder": "sub\\gemma.safetensors"},
        "11": {"noise_seed": 2**64 - 1},
        "26": {"filename_prefix": "video\\clip"},
        "9": {"frame_rate": "25"},
    }
    assert problems_of(changes) == []


def test_file_names_can_be_mapped() -> None:
    changes = {"1": {"ckpt_name": "ltx\\other.safetensors"}}
    assert problems_of(changes, names={"other.safetensors": "dev.safetensors"}) == []


def test_a_graph_without_an_output() -> None:
    document = two_stage()
    del document["26"]
    (problem,) = find_problems(read_api(document))
    assert problem.type == "prompt_no_outputs"
    assert "nothing in it saves" in str(problems_error(read_api(document), [problem]))


def test_unused_nodes_are_not_validated() -> None:
    changes = {"30": {"class_type": "Gone", "inputs": {}}}
    assert problems_of(changes) == []


def test_all_problems_are_reported_at_once() -> None:
    wrong = problems_of({"8": {"width": 1}, "12": {"cfg": -1, "model": None}})
    assert len(wrong) == 3
    message = str(problems_error(read_api(two_stage()), wrong))
    assert message.count("node 12") == 2
    assert message.count("node 8") == 1


@pytest.mark.parametrize("name", ["a/b.png", "a b.png", "..a", "a..b/c", "a\\b"])
def test_safe_file_names(name: str) -> None:
    assert unsafe_path_reason(name) == ""


# --- constant folding ----------------------------------------------------------------------------


def switch_graph(on: bool, expression: str = "a / 2") -> dict[str, Any]:
    """Return a graph with arithmetic and a switch between two prompts, one from a model."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "n": node("PrimitiveInt", value=1280),
        "m": node("ComfyMathExpression", expression=expression, **{"values.a": ["n", 0]}),
        "on": node("PrimitiveBoolean", value=on),
        "own": node("PrimitiveString", value="mine"),
        "clip": node("CLIPLoader", clip_name="x", type="ltxv"),
        "made": node("LTXVPromptEnhancer", prompt=["own", 0], clip=["clip", 0]),
        "sw": node("ComfySwitchNode", switch=["on", 0], on_true=["made", 0], on_false=["own", 0]),
        "out": node("PreviewAny", source=["sw", 0]),
        "size": node("PreviewAny", source=["m", 1]),
    }


def test_numbers_and_switches_are_folded() -> None:
    known = fold_constants(read_api(switch_graph(False)))
    assert known[Link("m", 1)] == 640
    assert known[Link("sw", 0)] == "mine"
    assert Link("sw", 0) not in fold_constants(read_api(switch_graph(True)))
    assert Link("m", 1) not in fold_constants(read_api(switch_graph(True, "a / 0")))


def test_an_unselected_branch_is_not_required() -> None:
    graph = read_api(switch_graph(False))
    assert "made" not in required_nodes(graph, output_nodes(graph))
    assert find_problems(graph) == []
    graph = read_api(switch_graph(True))
    assert "made" in required_nodes(graph, output_nodes(graph))
    wrong = find_problems(graph)
    assert [p.node for p in wrong] == ["made"]
    assert problems_error(graph, wrong).hint == "--set on.value=false bypasses it"


def test_a_prompt_that_passes_through_needs_no_model() -> None:
    document = switch_graph(True)
    document["made"]["class_type"] = "TextGenerateLTX2Prompt"
    graph = read_api(document)
    assert find_problems(graph) == []
    assert "clip" not in required_nodes(graph, output_nodes(graph))


def test_a_bypassed_image_is_not_required() -> None:
    document = two_stage()
    document["30"] = {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}
    inputs = {"vae": ["1", 2], "image": ["30", 0], "latent": ["8", 0], "strength": 0.7}
    document["31"] = {"class_type": "LTXVImgToVideoInplace", "inputs": {**inputs, "bypass": True}}
    document["10"]["inputs"]["video_latent"] = ["31", 0]
    assert find_problems(read_api(document), FILES) == []
    document["31"]["inputs"]["bypass"] = False
    assert [p.node for p in find_problems(read_api(document), FILES)] == ["30"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a * b + 1", 126),
        ("(int((a - 1) / 8)) * 8 + 1", 1),
        ("a // 2 ** 1 if a > b else -b", -25),
        ("max(a, b) % 7 + round(2.5)", 6),
        ("a < b and b != 3", True),
        ("sum(values)", 30),
    ],
)
def test_arithmetic(expression: str, value: float) -> None:
    assert evaluate(expression, {"a": 5, "b": 25, "values": [5, 25]}) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", "a +", "c", "__import__('os')", "a.real", "[a for a in (1,)]", "'x' * 9", "a if",
        "1 / 0", "9 ** 9 ** 9", "(9 ** 3999) ** 3999", "2 ** 5000", "lambda: 1", "open('x')",
        "pow(2, 99999)", "1e308 * 10", "values", "(" * 300 + "1" + ")" * 300,
        "+".join(["1"] * 1500), "min()", "a(1)", "abs(a=1)", "'a'",
    ],
)  # fmt: skip
def test_other_code_is_an_error(expression: str) -> None:
    with pytest.raises(WorkflowError):
        evaluate(expression, {"a": 5, "b": 25, "values": [5, 25]})


@pytest.mark.parametrize(
    ("name", "default", "expected"),
    [
        ("x.png [input]", "output", ("x.png", "input")),
        ("x.png[temp]", "", ("x.png", "temp")),
        ("x.png", "temp", ("x.png", "temp")),
        ("x [1].png", "", ("x [1].png", "")),
    ],
)
def test_a_folder_tag_selects_the_folder(
    name: str, default: str, expected: tuple[str, str]
) -> None:
    assert split_folder_tag(name, default) == expected
