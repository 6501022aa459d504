"""ComfyUI graphs imported as requests: published graphs, edited exports, and errors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.workflow_shapes import Api, template, two_stage
from typer.testing import CliRunner

from latent_ladder.cli.app import app
from latent_ladder.comfyui.conversion import ImportedWorkflow, export_workflow, import_workflow
from latent_ladder.comfyui.exporter.file_names import published_names
from latent_ladder.comfyui.formats.read import workflow_from_document
from latent_ladder.errors import LadderError, WorkflowError
from latent_ladder.request.model import Request
from latent_ladder.request.stages import BaseStage, RefineStage, SamplingStage
from latent_ladder.storage.artifact_store import Store

PROMPT = "A red ball rolls across a wooden table."


def import_document(document: Any, node: str | None = None) -> ImportedWorkflow:
    return import_workflow(workflow_from_document(json.loads(json.dumps(document))), node)


def import_error(document: Any, node: str | None = None) -> WorkflowError:
    with pytest.raises(WorkflowError) as caught:
        import_document(document, node)
    return caught.value


def losses_of(found: ImportedWorkflow, node: str) -> str:
    return " ".join(lost.message for lost in found.losses if lost.node == node)


# -- graphs like the published ones ---------------------------------------------------------------


def test_lightricks_two_stage_graph_equals_its_preset() -> None:
    found = import_document(two_stage())
    assert found.preset_match.equal
    assert found.request.preset == found.preset_match.preset == "lightricks-workflow"
    assert found.request.prompt == "a tea ceremony"
    assert found.request.models.checkpoint == "ltx-2.3-22b-dev.safetensors"
    assert found.request.models.distilled_lora == (
        "ltxv/ltx2/ltx-2.3-22b-distilled-lora-384-1.1.safetensors"
    )
    assert found.losses == ()
    assert (found.request.decode.grid, found.request.decode.overlap_px) == ((2, 2), 192)


def test_comfyui_template_equals_its_preset_with_truncations_as_losses() -> None:
    found = import_document(template())
    assert found.preset_match.preset == "comfy-template"
    assert found.preset_match.equal
    assert (found.request.width, found.request.height) == (1280, 704)
    assert "640x352" in losses_of(found, "empty")
    assert "126 frames, but the clip has 121" in losses_of(found, "empty")
    assert "5.04 s of audio for a clip of 4.84 s" in losses_of(found, "silence")


def test_a_different_size_is_a_difference_from_the_preset() -> None:
    found = import_document(template(size=(1920, 1088), seconds=4, fps=24))
    assert found.preset_match.preset == "comfy-template"
    paths = [d.path for d in found.preset_match.differences]
    assert paths == ["width", "height", "fps", "frames"]
    assert found.request.preset == ""
    assert found.losses == ()


def test_a_prompt_to_be_enhanced_is_imported_as_written() -> None:
    found = import_document(template(enhance=True))
    assert found.request.prompt == "a tea ceremony"
    assert "rewrites the prompt" in losses_of(found, "enhanced")


def test_images_are_imported_with_differences_between_stages() -> None:
    found = import_document(two_stage(bypass=False))
    (image,) = found.request.images
    assert (image.file, image.frame, image.strength, image.crf) == ("example.png", 0, 0.7, 18)
    assert "strength 1 (0.7), crf 0 (18)" in losses_of(found, "image 2")


def test_guides_are_imported_as_images() -> None:
    graph = two_stage()
    inputs = {
        "positive": ["conditioning", 0],
        "negative": ["conditioning", 1],
        "vae": ["checkpoint", 2],
    }
    graph["guide"] = _node(
        "LTXVAddGuide",
        **inputs,
        latent=["empty", 0],
        image=["picture", 0],
        frame_idx=-1,
        strength=0.5,
    )
    graph["start 1"]["inputs"]["video_latent"] = ["guide", 2]
    graph["guider 1"]["inputs"] |= {"positive": ["guide", 0], "negative": ["guide", 1]}
    (image,) = import_document(graph).request.images
    assert (image.frame, image.strength, image.crf) == (-1, 0.5, 0)
    graph["guide"]["inputs"]["frame_idx"] = 0
    found = import_document(graph)
    assert found.request.images[0].frame == 0
    assert "a guide for the first frame" in losses_of(found, "guide")


def test_audio_that_drives_the_video() -> None:
    graph = two_stage()
    graph |= {
        "speech": _node("LoadAudio", audio="speech.wav"),
        "trimmed": _node("TrimAudioDuration", audio=["speech", 0], start_index=0.0, duration=5.0),
        "encoded": _node("LTXVAudioVAEEncode", audio=["trimmed", 0], audio_vae=["audio vae", 0]),
        "zeros": _node("SolidMask", value=0.0, width=64, height=64),
        "silence": _node("SetLatentNoiseMask", samples=["encoded", 0], mask=["zeros", 0]),
    }
    graph["clip"]["inputs"]["audio"] = ["trimmed", 0]
    assert import_document(graph).request.audio_in == "speech.wav"


def test_audio_of_the_first_stage_is_kept() -> None:
    graph = two_stage()
    graph["sound"]["inputs"]["samples"] = ["parts 1", 1]
    assert import_document(graph).request.audio == "keep"
    del graph["clip"]["inputs"]["audio"]
    found = import_document(graph)
    assert found.request.audio == "refine"
    assert "not saved" in losses_of(found, "run 2")


def test_separate_files() -> None:
    graph = two_stage()
    graph["checkpoint"] = _node("UnetLoaderGGUF", unet_name="ltx-2.3-Q4_K_M.gguf")
    graph["encoder"] = _node(
        "DualCLIPLoader", clip_name1="gemma.safetensors", clip_name2="text.safetensors", type="ltxv"
    )
    graph["vae"] = _node("VAELoader", vae_name="video_vae.safetensors")
    graph["audio vae"]["inputs"]["ckpt_name"] = "audio_vae.safetensors"
    for node in graph.values():
        if node["inputs"].get("vae"):
            node["inputs"]["vae"] = ["vae", 0]
    chosen = import_document(graph).request.models.choices
    lora = "ltxv/ltx2/ltx-2.3-22b-distilled-lora-384-1.1.safetensors"
    assert chosen == {
        "transformer": "ltx-2.3-Q4_K_M.gguf",
        "text_encoder": "gemma.safetensors",
        "text_projection": "text.safetensors",
        "video_vae": "video_vae.safetensors",
        "audio_vae": "audio_vae.safetensors",
        "distilled_lora": lora,
    }


def test_ksampler_and_schedulers() -> None:
    graph = two_stage()
    graph["run 2"] = _node(
        "KSampler",
        model=["lora", 0],
        positive=["conditioning", 0],
        negative=["conditioning", 1],
        latent_image=["start 2", 0],
        seed=5,
        steps=3,
        cfg=2.5,
        sampler_name="dpmpp_2m",
        scheduler="simple",
        denoise=0.4,
    )
    graph["sigmas 1"] = _node("BasicScheduler", model=["lora", 0], scheduler="beta", steps=12)
    request = import_document(graph).request
    refine = request.stages[2]
    assert isinstance(refine, RefineStage)
    assert [round(s, 4) for s in request.resolved.stages[2].sigmas] == [0.8892, 0.8106, 0.6407, 0.0]
    assert (refine.sampler, refine.seed, refine.guidance.audio.cfg) == ("dpmpp_2m", 5, 2.5)
    base = request.stages[0]
    assert isinstance(base, BaseStage) and base.schedule is not None
    assert (base.schedule.name, base.schedule.steps) == ("beta", 12)


def test_the_scheduler_counts_tokens_only_where_a_latent_is_linked() -> None:
    graph = two_stage()
    graph["sigmas 1"] = _node("LTXVScheduler", steps=15, latent=["start 1", 0])
    base = import_document(graph).request.stages[0]
    assert isinstance(base, BaseStage) and base.schedule is not None
    assert base.schedule.tokens == "actual"
    del graph["sigmas 1"]["inputs"]["latent"]
    base = import_document(graph).request.stages[0]
    assert isinstance(base, BaseStage) and base.schedule is not None
    assert base.schedule.tokens is None


def test_split_sigmas_are_resolved() -> None:
    graph = two_stage()
    graph["all"] = _node("ManualSigmas", sigmas="1.0, 0.9, 0.6, 0.3, 0.0")
    graph["sigmas 2"] = _node("SplitSigmas", sigmas=["all", 0], step=2)
    graph["run 2"]["inputs"]["sigmas"] = ["sigmas 2", 1]
    assert import_document(graph).request.resolved.stages[2].sigmas == (0.6, 0.3, 0.0)
    graph["run 2"]["inputs"]["sigmas"] = ["sigmas 2", 0]
    assert "ends its sigmas above 0" in import_error(graph).message


def test_multimodal_guidance() -> None:
    graph = two_stage()
    graph["audio g"] = _node("GuiderParameters", modality="AUDIO", cfg=7, modality_scale=3)
    graph["video g"] = _node(
        "GuiderParameters", modality="VIDEO", cfg=3, rescale=0.9, parameters=["audio g", 0]
    )
    inputs = {
        "positive": ["conditioning", 0],
        "negative": ["conditioning", 1],
        "model": ["lora", 0],
    }
    graph["guider 1"] = _node(
        "MultimodalGuider", **inputs, skip_blocks="14, 28", parameters=["video g", 0]
    )
    base = import_document(graph).request.stages[0]
    assert isinstance(base, BaseStage)
    assert base.guidance.audio.stg_blocks == (14, 28)
    # the defaults of the node; its modality scale of 0 costs a pass
    assert (base.guidance.video.stg, base.guidance.video.modality) == (1.0, 0.0)
    assert (base.guidance.audio.cfg, base.guidance.audio.rescale) == (7.0, 0.7)


def test_sigmas_are_read_as_in_comfyui() -> None:
    graph = two_stage()
    graph["sigmas 2"]["inputs"]["sigmas"] = "0.9, 1e-3, 0"
    error = import_error(graph)
    assert error.node_id == "run 2"
    assert "'0.9, 1.0, -3.0, 0.0' go below 0" in error.message


# -- graphs that are not a request ----------------------------------------------------------------


def test_an_unsupported_node_is_an_error_with_a_hint() -> None:
    graph = two_stage()
    graph["odd"] = _node("LatentUpscaleBy", samples=["parts 1", 0], scale_by=2.0)
    graph["larger"]["inputs"]["samples"] = ["odd", 0]
    error = import_error(graph)
    assert error.node_id == "odd"
    assert error.class_type == "LatentUpscaleBy"
    assert "ladder workflow run" in str(error.hint)


def test_several_outputs_need_a_choice() -> None:
    graph = template()
    graph["other clip"] = _node("CreateVideo", images=["frames", 0], fps=["fps", 0])
    graph["other save"] = _node("SaveVideo", video=["other clip", 0], filename_prefix="silent")
    assert "saves 2 results" in import_error(graph).message
    assert "--node save" in str(import_error(graph).hint)
    assert import_document(graph, "save").preset_match.equal
    assert "not saved" in losses_of(import_document(graph, "silent"), "run 2")
    assert "no node nothing" in import_error(graph, "nothing").message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop("save"), "saves nothing"),
        (lambda g: g["wording"]["inputs"].update(value=" "), "prompt is empty"),
        (lambda g: g["guider 1"]["inputs"].pop("model"), "model is not connected"),
        (lambda g: g["half width"]["inputs"].update(expression="a**b"), "has no value"),
        (
            lambda g: g["noise 1"].update(class_type="DisableNoise"),
            "does not start from the noise of a seed",
        ),
        (
            lambda g: g["sampler 1"]["inputs"].update(sampler_name="ddim"),
            "uses the unsupported sampler ddim",
        ),
        (lambda g: g["sampler 1"].update(class_type="Odd"), "unsupported sampler node"),
        (lambda g: g["silence"].update(class_type="LoadLatent"), "unsupported source of audio"),
        (lambda g: g["clip"]["inputs"].update(fps="fast"), "fps='fast' is not a number"),
    ],
)
def test_graphs_that_no_request_can_express(change: Callable[[Api], object], message: str) -> None:
    graph = template()
    change(graph)
    assert message in import_error(graph).message


def test_settings_that_a_request_cannot_express_are_losses() -> None:
    graph = template()
    graph["patch"] = _node("LTXVApplySTG", model=["checkpoint", 0], block_indices="14")
    graph["lora"]["inputs"]["model"] = ["patch", 0]
    graph["prompt 2"] = _node("CLIPTextEncode", clip=["encoder", 0], text="another")
    graph["guider 2"]["inputs"]["positive"] = ["prompt 2", 0]
    found = import_document(graph)
    assert "patches the model" in losses_of(found, "patch")
    assert "its own prompts" in losses_of(found, "run 2")


# -- edits ----------------------------------------------------------------------------------------


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def own_request() -> Request:
    """Return a request with fields that no node expresses."""
    table = Request.from_preset("ltx-pipelines", prompt=PROMPT).to_dict()
    table |= {"seed": 7, "output": {"crf": 12}, "images": [{"file": "/far/away.png"}]}
    table["models"] = {"precision": "fp8"}
    table["stages"][2] |= {"seed": 9, "tiles": {"px": 512}}
    return Request.from_dict(table)


EDITS: tuple[tuple[str, int, int, Any, Callable[[Request], Any], Any], ...] = (
    ("RandomNoise", 0, 0, 123, lambda r: r.stage_seed(0), 123),
    ("RandomNoise", 1, 0, 2**64 - 1, lambda r: r.stage_seed(2), 2**64 - 1),
    ("CLIPTextEncode", 0, 0, "a boat", lambda r: r.prompt, "a boat"),
    ("EmptyLTXVLatentVideo", 0, 0, 640, lambda r: r.width, 1280),
    ("EmptyLTXVLatentVideo", 0, 2, 97, lambda r: r.frames, 97),
    ("ManualSigmas", 0, 0, "0.5, 0.2, 0.0", lambda r: r.resolved.stages[2].sigmas, (0.5, 0.2, 0.0)),
    ("LTXVScheduler", 0, 0, 12, lambda r: len(r.resolved.stages[0].sigmas) - 1, 12),
    ("GuiderParameters", 0, 1, 2.5, lambda r: _sampling(r, 0).guidance.audio.cfg, 2.5),
    ("CFGGuider", 0, 0, 1.5, lambda r: _sampling(r, 2).guidance.video.cfg, 1.5),
    ("KSamplerSelect", 1, 0, "heun", lambda r: _sampling(r, 2).sampler, "heun"),
    ("LoraLoaderModelOnly", 0, 1, 0.3, lambda r: _sampling(r, 2).loras[0].strength, 0.3),
    ("LTXVImgToVideoInplace", 0, 0, 0.4, lambda r: r.images[0].strength, 0.4),
    (
        "CheckpointLoaderSimple",
        0,
        0,
        "b.safetensors",
        lambda r: r.models.checkpoint,
        "b.safetensors",
    ),
)


def _sampling(request: Request, index: int) -> SamplingStage:
    stage = request.stages[index]
    assert isinstance(stage, SamplingStage)
    return stage


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: f"{e[0]}{e[1]}.{e[2]}")
def test_edits_in_comfyui_are_merged_into_the_embedded_request(edit: Any) -> None:
    kind, which, widget, value, read, expected = edit
    request = own_request()
    ui = json.loads(json.dumps(export_workflow(request, published_names(request), "ui")))
    nodes = [node for node in ui["nodes"] if node["type"] == kind]
    nodes[which]["widgets_values"][widget] = value
    found = import_document(ui)
    assert found.embedded
    assert read(found.request) == expected
    assert read(request) != expected
    assert found.request.noise_order == "ltx"
    assert found.request.output.crf == 12
    assert found.request.models.precision == "fp8"
    assert found.request.images[0].file == "/far/away.png"
    refine = found.request.stages[2]
    assert isinstance(refine, RefineStage)
    wanted = request.stages[2]
    assert isinstance(wanted, RefineStage)
    assert refine.tiles == wanted.tiles


def test_a_fixed_list_stays_when_the_size_is_edited() -> None:
    table = own_request().to_dict()
    table["stages"][2].pop("sigmas")
    table["stages"][2] |= {
        "schedule": {"name": "ltx", "steps": 8, "tokens": "actual"},
        "denoise": 0.5,
    }
    request = Request.from_dict(table)
    ui = json.loads(json.dumps(export_workflow(request, published_names(request), "ui")))
    (empty,) = (n for n in ui["nodes"] if n["type"] == "EmptyLTXVLatentVideo")
    empty["widgets_values"][0] = 320
    found = import_document(ui).request
    assert found.width == 640
    assert found.resolved.stages[2].sigmas == pytest.approx(request.resolved.stages[2].sigmas)


def test_a_removed_stage_is_removed_from_the_request() -> None:
    request = Request.from_preset("distilled", prompt=PROMPT)
    graph = export_workflow(request, published_names(request), "api")
    runs = [name for name, n in graph.items() if n["class_type"] == "LTXVSeparateAVLatent"]
    for node in graph.values():
        if node["class_type"] == "VAEDecode":
            node["inputs"]["samples"] = [runs[0], 0]
        if node["class_type"] == "LTXVAudioVAEDecode":
            node["inputs"]["samples"] = [runs[0], 1]
        if node["class_type"] == "ImageCrop":
            node["inputs"] |= {"width": 640, "height": 360, "x": 0, "y": 12}
    found = import_document(graph)
    assert [stage.kind for stage in found.request.stages] == ["base"]
    assert (found.request.width, found.request.height) == (640, 360)
    assert found.preset_match.preset == "distilled-single"


def test_a_damaged_embedded_request_is_ignored() -> None:
    request = own_request()
    ui = json.loads(json.dumps(export_workflow(request, published_names(request), "ui")))
    ui["extra"]["latent_ladder"]["request"]["width"] = "wide"
    found = import_document(ui)
    assert not found.embedded
    assert found.request.width == request.width


# -- commands -------------------------------------------------------------------------------------


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_export_and_import_as_commands(tmp_path: Path) -> None:
    graph, request = tmp_path / "graph.json", tmp_path / "request.toml"
    assert run("workflow", "export", "preset:balanced", "-o", graph).strip() == str(graph)
    assert run("workflow", "import", graph, "-o", request).strip() == str(request)
    made = Request.from_toml(request.read_text())
    assert made == Request.from_preset("balanced", prompt=made.prompt)
    with pytest.raises(LadderError, match="exists already"):
        run("workflow", "export", "preset:balanced", "-o", graph)
    again = run("workflow", "export", request, "--format", "api")
    assert import_document(json.loads(again)).request == made


def test_import_prints_json_and_sets_values(tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    file.write_text(json.dumps(template()))
    found = json.loads(run("workflow", "import", file, "--json"))
    assert found["equal"] and found["preset"] == "comfy-template"
    assert {lost["node"] for lost in found["lost"]} == {"empty", "silence"}
    text = run("workflow", "import", file, "--set", "noise 1.noise_seed=4", "--without-files")
    table = tomllib.loads(text)
    assert table["seed"] == 4
    assert set(table["models"]) <= {"precision", "folders"}


def test_export_of_a_run(tmp_path: Path) -> None:
    request = Request.from_preset("distilled", prompt=PROMPT, seed=77)
    record = Store(tmp_path / "store").runs.start("ladder make", request.to_dict())
    text = run("workflow", "export", record.id, "--store", tmp_path / "store", "--set", "seed=78")
    assert import_document(json.loads(text)).request.seed == 78


def test_exporting_a_graph_is_an_error_with_a_hint(tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    file.write_text(json.dumps(template()))
    with pytest.raises(LadderError, match="contains a ComfyUI workflow, not a request"):
        run("workflow", "export", file)


def test_exporting_unknown_sources_is_an_error() -> None:
    with pytest.raises(LadderError, match="format=svg is unknown"):
        run("workflow", "export", "preset:distilled", "--format", "svg")
    with pytest.raises(LadderError, match="preset 'nothing' does not exist"):
        run("workflow", "export", "preset:nothing")
