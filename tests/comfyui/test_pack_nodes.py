"""Nodes of popular packs: replaced by ComfyUI's own nodes, with a note."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.workflow_graphs import CLIP, MODELS, ONE_STAGE, Nodes, graph

from latent_ladder.comfyui.constant_folding import fold_constants
from latent_ladder.comfyui.formats.read import workflow_from_document
from latent_ladder.comfyui.graph import Graph, Link
from latent_ladder.comfyui.importer.importer import import_graph
from latent_ladder.errors import WorkflowError


def patched(kind: str, inputs: dict[str, Any]) -> Graph:
    """A graph whose guider takes its model through a node of a pack."""
    nodes: Nodes = {
        **ONE_STAGE,
        "patch": (kind, {"model": ["model", 0], **inputs}),
        "guider": ("CFGGuider", {**ONE_STAGE["guider"][1], "model": ["patch", 0]}),
    }
    return graph(nodes)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("PathchSageAttentionKJ", {"sage_attention": "auto", "allow_compile": True}),
        ("ModelPatchTorchSettings", {"enable_fp16_accumulation": True}),
        ("TorchCompileModelAdvanced", {"backend": "inductor", "mode": "default"}),
        ("LTXVChunkFeedForward", {"chunks": 4, "dim_threshold": 4096}),
        ("LTX2MemoryEfficientSageAttentionPatch", {"triton_kernels": True}),
        ("LTX2SamplingPreviewOverride", {"preview_rate": 8}),
    ],
)
def test_patches_that_do_not_change_the_picture_are_left_out(
    kind: str, inputs: dict[str, Any]
) -> None:
    found = patched(kind, inputs)
    assert found.nodes["guider"].inputs["model"] == Link("model", 0)
    assert "patch" not in found.nodes
    (note,) = found.findings
    assert (note.code, note.node) == ("pack_node", "patch") and kind in note.message
    assert import_graph(found).request == import_graph(graph(ONE_STAGE)).request


ROWS: dict[str, Any] = {
    "PowerLoraLoaderHeaderWidget": {"type": "PowerLoraLoaderHeaderWidget"},
    "lora_1": {"on": True, "lora": "one.safetensors", "strength": 0.8, "strengthTwo": None},
    "lora_2": {"on": False, "lora": "off.safetensors", "strength": 1},
    "lora_3": {"on": True, "lora": "sub/two.safetensors", "strength": -0.5},
    "➕ Add Lora": "",
}


def test_a_loader_of_several_loras_is_a_chain_of_loaders() -> None:
    found = patched("Power Lora Loader (rgthree)", {"clip": ["clip", 0], **ROWS})
    first, last = found.nodes["patch:lora_1"], found.nodes["patch"]
    assert first.class_type == last.class_type == "LoraLoaderModelOnly"
    assert first.inputs == {
        "model": Link("model", 0), "lora_name": "one.safetensors", "strength_model": 0.8,
    }  # fmt: skip
    assert last.inputs["model"] == Link("patch:lora_1", 0)
    assert last.inputs["lora_name"] == "sub/two.safetensors"
    loras = import_graph(found).request.stages[0].model_dump()["loras"]
    assert [(x["name"], x["strength"]) for x in loras] == [
        ("one.safetensors", 0.8), ("sub/two.safetensors", -0.5),
    ]  # fmt: skip


def test_the_rows_of_the_loader_are_read_from_the_ui_format() -> None:
    row = {"on": True, "lora": "one.safetensors", "strength": 0.8, "strengthTwo": None}
    node = {
        "id": 2, "type": "Power Lora Loader (rgthree)", "mode": 0,
        "inputs": [{"name": "model", "type": "MODEL", "link": 1}],
        "outputs": [{"name": "MODEL", "type": "MODEL", "links": [2]}],
        "widgets_values": [{}, {"type": "PowerLoraLoaderHeaderWidget"}, row, {}, ""],
    }  # fmt: skip
    loader = {
        "id": 1, "type": "CheckpointLoaderSimple", "mode": 0, "widgets_values": ["a.safetensors"],
        "outputs": [{"name": "MODEL", "type": "MODEL", "links": [1]}],
    }  # fmt: skip
    shift = {
        "id": 3, "type": "ModelSamplingLTXV", "mode": 0, "widgets_values": [2.05, 0.95],
        "inputs": [{"name": "model", "type": "MODEL", "link": 2}],
    }  # fmt: skip
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"]]
    document = {"nodes": [loader, node, shift], "links": links, "version": 0.4}
    found = workflow_from_document(document).graph
    assert found.nodes["2"].class_type == "LoraLoaderModelOnly"
    assert found.nodes["2"].inputs == {
        "model": Link("1", 0), "lora_name": "one.safetensors", "strength_model": 0.8,
    }  # fmt: skip
    assert found.nodes["3"].inputs["model"] == Link("2", 0)


def test_a_loader_without_loras_passes_model_and_clip_on() -> None:
    nodes: Nodes = {
        **MODELS,
        "none": ("Power Lora Loader (rgthree)", {"model": ["model", 0], "clip": ["clip", 0]}),
        "prompt": ("CLIPTextEncode", {"clip": ["none", 1], "text": "a ball"}),
    }
    found = graph(nodes)
    assert found.nodes["prompt"].inputs["clip"] == Link("clip", 0)
    assert "none" not in found.nodes


def test_seeds_and_switches_of_rgthree() -> None:
    nodes: Nodes = {
        **ONE_STAGE,
        "seed": ("Seed (rgthree)", {"seed": 2**63 + 1}),
        "random": ("Seed (rgthree)", {"seed": -1}),
        "noise": ("RandomNoise", {"noise_seed": ["seed", 0]}),
        "any": ("Any Switch (rgthree)", {"any_02": ["model", 0], "any_03": ["gone", 0]}),
        "gone": ("UNETLoader", {"unet_name": "x.safetensors"}),
        "guider": ("CFGGuider", {**ONE_STAGE["guider"][1], "model": ["any", 0]}),
    }
    found = graph(nodes)
    known = fold_constants(found)
    assert known[Link("seed", 0)] == 2**63 + 1
    drawn = known[Link("random", 0)]
    assert isinstance(drawn, int) and 0 <= drawn < 2**50
    assert str(drawn) in next(f.message for f in found.findings if f.node == "random")
    assert found.nodes["guider"].inputs["model"] == Link("model", 0)


def test_video_helper_nodes_become_those_of_comfyui() -> None:
    nodes: Nodes = {
        "load": (
            "VHS_LoadVideo",
            {
                "video": "in.mp4", "force_rate": 0, "custom_width": 64, "custom_height": 32,
                "frame_load_cap": 9, "skip_first_frames": 2, "select_every_nth": 1,
            },
        ),
        "save": (
            "VHS_VideoCombine",
            {
                "images": ["load", 0], "audio": ["load", 2], "frame_rate": 24,
                "loop_count": 0, "filename_prefix": "out", "format": "video/h264-mp4",
                "pix_fmt": "yuv420p", "crf": 17, "pingpong": False, "save_output": True,
            },
        ),
    }  # fmt: skip
    found = graph(nodes)
    kinds = {name: node.class_type for name, node in found.nodes.items()}
    assert kinds["save"] == "SaveVideo" and kinds["save:video"] == "CreateVideo"
    assert found.nodes["save"].inputs["format.codec.encoding.crf"] == 17
    video = found.nodes["save:video"].inputs
    assert video["fps"] == 24 and video["audio"] == Link("load:parts", 1)
    scale = found.nodes["load:scale"]
    assert video["images"] == Link("load:scale", 0)
    assert (scale.inputs["width"], scale.inputs["height"]) == (64, 32)
    part = found.nodes["load:range"].inputs
    assert (part["batch_index"], part["length"]) == (2, 9)


def test_a_clip_of_video_combine_is_imported() -> None:
    combine = {"images": ["frames", 0], "audio": ["sound", 0], "frame_rate": 24}
    nodes = {k: v for k, v in ONE_STAGE.items() if k not in ("save", "clip file")}
    assert set(CLIP) - set(nodes) == {"save", "clip file"}
    found = graph({**nodes, "save": ("VHS_VideoCombine", {**combine, "format": "video/h264-mp4"})})
    assert import_graph(found).request.fps == 24


@pytest.mark.parametrize(
    ("kind", "inputs", "text"),
    [
        ("VHS_LoadVideo", {"video": "a.mp4", "force_rate": 24}, "force_rate"),
        ("VHS_VideoCombine", {"format": "image/gif", "frame_rate": 8}, "format"),
    ],
)
def test_settings_without_an_equivalent_are_named(
    kind: str, inputs: dict[str, Any], text: str
) -> None:
    from latent_ladder.comfyui.constant_folding import definition_of

    node = graph({"n": (kind, inputs)}).nodes["n"]
    assert node.class_type == kind and text in definition_of(node).unsupported_reason


def test_a_cycle_through_replaced_nodes_is_an_error() -> None:
    nodes: Nodes = {
        "a": ("PathchSageAttentionKJ", {"model": ["b", 0]}),
        "b": ("ModelPatchTorchSettings", {"model": ["a", 0]}),
        "c": ("ModelSamplingLTXV", {"model": ["a", 0]}),
    }
    with pytest.raises(WorkflowError):
        graph(nodes)
