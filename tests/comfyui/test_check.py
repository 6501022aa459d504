"""``ladder workflow check`` reports sizes, warnings, files and unsupported nodes, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from helpers.model_folders import single
from helpers.workflow_ui_graphs import two_stage
from PIL import Image
from typer.testing import CliRunner

from latent_ladder.checkpoints.scan import Library, scan
from latent_ladder.checkpoints.search_paths import ModelFolder
from latent_ladder.cli.app import app
from latent_ladder.comfyui.analysis.check import WorkflowReport, check_workflow
from latent_ladder.comfyui.analysis.shape_rules import RULES, factor_from_name
from latent_ladder.comfyui.formats.read import workflow_from_document
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.sampling import parse_manual_sigmas

EMPTY = Library((), {})
NAMES = {
    "dev.safetensors": "tiny-dev.safetensors",
    "gemma.safetensors": "tiny-gemma.safetensors",
    "distilled.safetensors": "tiny-distilled-lora.safetensors",
    "upscaler-x2.safetensors": "x2.safetensors",
}


def check(document: dict[str, Any], library: Library = EMPTY, **more: Any) -> WorkflowReport:
    return check_workflow(workflow_from_document(document), library, **more)


def codes(report: WorkflowReport) -> dict[str, str]:
    """Return the node of each finding by its code."""
    return {finding.code: finding.node for finding in report.findings}


def with_inputs_changed(node: str, **inputs: Any) -> dict[str, Any]:
    document = two_stage()
    document[node]["inputs"].update(inputs)
    return document


def test_reports_sizes_frames_and_stages() -> None:
    (result,) = check(two_stage()).outputs
    assert (result.size, result.frames, result.fps) == ((1280, 704), 121, 25.0)
    assert result.duration_s == pytest.approx(4.84)
    assert result.file == "video/clip_00001_.mp4"
    assert [stage["steps"] for stage in result.stages] == [3, 3]
    assert [stage.get("start_sigma") for stage in result.stages] == [1.0, 0.85]
    assert {stage["seed"] for stage in result.stages} == {43}


def test_warns_about_a_size_that_is_truncated_to_latents() -> None:
    report = check(two_stage(width=640, height=360))
    (finding,) = [t for t in report.findings if t.code == "size_truncated"]
    assert finding.node == "26"
    assert "1280x704, not 1280x720" in finding.message
    assert "size_truncated" not in codes(check(two_stage(width=640, height=384)))


def test_numbers_are_folded_through_arithmetic() -> None:
    document = with_inputs_changed("8", width=["41", 1], height=["42", 1], length=["43", 1])
    for key, expression, value in (("41", "a/2", 1280), ("42", "a/2", 720), ("43", "a*25+1", 5)):
        document[f"{key}0"] = {"class_type": "PrimitiveInt", "inputs": {"value": value}}
        inputs = {"expression": expression, "values.a": [f"{key}0", 0]}
        document[key] = {"class_type": "ComfyMathExpression", "inputs": inputs}
    document["9"]["inputs"]["frames_number"] = ["43", 1]
    report = check(document)
    assert report.outputs[0].size == (1280, 704)
    found = codes(report)
    assert found["frames_truncated"] == "8"
    assert found["sound_longer"] == "26"
    assert report.outputs[0].sound_s == pytest.approx(5.01)


@pytest.mark.parametrize(
    ("node", "inputs", "code", "message"),
    [
        ("14", {"sigmas": "1, 1e-3, 0"}, "sigmas_misread", "read as 1, 1, -3, 0, not as 1, 0.001"),
        ("14", {"sigmas": "1, 0.5, 5., 0"}, "sigmas_rise", "1, 0.5, 5, 0"),
        ("14", {"sigmas": "1, 0.5"}, "noise_left", "end at 0.5"),
        ("14", {"sigmas": "5, 0"}, "sigmas_above_1", "start at 5"),
        ("14", {"sigmas": "none"}, "no_sigmas", "contains no number"),
        ("25", {"fps": 24.0}, "rates_differ", "written at 24 fps but conditioned on 25 fps"),
        ("23", {"overlap": 1}, "thin_overlap", "overlap by 1 latent"),
        ("8", {"width": 64, "height": 64}, "tiles_too_narrow", "are 5 wide but overlap by 6"),
        ("12", {"cfg": 1.0}, "negative_unused", "ignores the negative prompt 'noise'"),
        ("13", {"sampler_name": "euler_cfg_pp"}, "two_passes", "two passes per step"),
        ("8", {"width": 650}, "size_truncated", "not 1300x704"),
    ],
)
def test_each_finding_names_its_node(
    node: str, inputs: dict[str, Any], code: str, message: str
) -> None:
    report = check(with_inputs_changed(node, **inputs))
    found = [finding for finding in report.findings if finding.code == code]
    assert found
    assert message in found[0].message


def test_a_graph_without_issues_has_no_findings() -> None:
    document = with_inputs_changed("12", cfg=3.0)
    assert check(document).findings == ()


def test_modality_scale_0_costs_a_pass() -> None:
    document = two_stage()
    parameters = {"modality": "VIDEO", "cfg": 3.0, "stg": 1.0, "rescale": 0.7, "modality_scale": 0}
    document["12"] = {
        "class_type": "MultimodalGuider",
        "inputs": {"model": ["4", 0], "positive": ["7", 0], "negative": ["7", 1],
                   "parameters": ["40", 0], "skip_blocks": "28"},
    }  # fmt: skip
    document["40"] = {"class_type": "GuiderParameters", "inputs": parameters}
    assert codes(check(document))["modality_scale_0"] == "40"
    parameters["modality_scale"] = 1
    assert "modality_scale_0" not in codes(check(document))


def with_image(again: bool) -> dict[str, Any]:
    """Return an image-to-video graph; with ``again``, stage 2 has the image too."""
    document = two_stage()
    image = {"image": ["50", 0], "vae": ["1", 2], "strength": 1.0, "bypass": False}
    document["50"] = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}
    document["51"] = {
        "class_type": "LTXVImgToVideoInplace",
        "inputs": {**image, "latent": ["8", 0]},
    }
    document["10"]["inputs"]["video_latent"] = ["51", 0]
    if again:
        inputs = {**image, "latent": ["18", 0]}
        document["52"] = {"class_type": "LTXVImgToVideoInplace", "inputs": inputs}
        document["19"]["inputs"]["video_latent"] = ["52", 0]
    return document


def test_warns_if_the_upsampler_drops_the_image_mask() -> None:
    assert codes(check(with_image(again=False)))["conditioning_dropped"] == "21"
    assert "conditioning_dropped" not in codes(check(with_image(again=True)))


def test_warns_about_temporal_tiles() -> None:
    tiles = {"tile_size": 512, "overlap": 64, "temporal_overlap": 8}
    for size, code in ((4096, "no_temporal_tiles"), (64, "temporal_seams")):
        document = two_stage()
        inputs = {"samples": ["22", 0], "vae": ["1", 2], **tiles, "temporal_size": size}
        document["23"] = {"class_type": "VAEDecodeTiled", "inputs": inputs}
        assert codes(check(document))[code] == "23"


def test_warns_about_rounded_frame_rates() -> None:
    document = with_inputs_changed("9", frame_rate=["60", 0])
    document["60"] = {"class_type": "LTXFloatToInt", "inputs": {"a": 23.976}}
    assert codes(check(document))["rate_rounded"] == "60"


def test_manual_sigmas_are_parsed_as_in_comfyui() -> None:
    assert parse_manual_sigmas("1.0, 0.99375,.5 0") == [1.0, 0.99375, 0.5, 0.0]
    assert parse_manual_sigmas("1e-3") == [1.0, -3.0]
    assert parse_manual_sigmas("5.") == [5.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ltx-2.3-spatial-upscaler-x2-1.1.safetensors", ("spatial", Fraction(2))),
        ("ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors", ("spatial", Fraction(3, 2))),
        ("ltx-2.3-temporal-upscaler-x2-1.0.safetensors", ("temporal", Fraction(2))),
        ("mine.safetensors", ("spatial", Fraction(2))),
    ],
)
def test_upsampler_factors_from_file_names(name: str, expected: tuple[str, Fraction]) -> None:
    assert factor_from_name(name) == expected


def test_temporal_and_pixel_upscaling() -> None:
    document = with_inputs_changed("17", model_name="ltx-temporal-upscaler-x2.safetensors")
    document["70"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "4x-x.pth"}}
    inputs = {"upscale_model": ["70", 0], "image": ["23", 0]}
    document["71"] = {"class_type": "ImageUpscaleWithModel", "inputs": inputs}
    document["25"]["inputs"]["images"] = ["71", 0]
    (result,) = check(document).outputs
    assert (result.size, result.frames) == ((640 * 4, 352 * 4), 241)


def test_every_shape_rule_has_a_node_definition() -> None:
    assert set(RULES) <= set(NODE_TYPES)


def test_files_are_found_misplaced_wrong_or_missing(tmp_path: Path) -> None:
    folder = single(tmp_path / "models")
    lora = folder / "loras" / "tiny-distilled-lora.safetensors"
    lora.rename(folder / "vae_lora.safetensors")
    (folder / "vae").mkdir()
    (folder / "vae_lora.safetensors").rename(folder / "vae" / "tiny-distilled-lora.safetensors")
    (folder / "latent_upscale_models" / "x2.safetensors").write_bytes(b"<!DOCTYPE html>")
    library = scan([ModelFolder(folder)])
    report = check(two_stage(), library, names=NAMES)
    states = {one.name: one.state for one in report.files}
    assert states == {
        "dev.safetensors": "here",
        "gemma.safetensors": "here",
        "distilled.safetensors": "elsewhere",
        "upscaler-x2.safetensors": "wrong",
    }
    notes = {one.name: one.note for one in report.files}
    assert "is in vae/" in notes["distilled.safetensors"]
    assert "web page" in notes["upscaler-x2.safetensors"]
    swapped = {**NAMES, "dev.safetensors": "tiny-gemma.safetensors"}
    (wrong,) = [f for f in check(two_stage(), library, names=swapped).files if "dev" in f.name]
    assert (wrong.state, wrong.note) == ("wrong", "it contains text encoder")
    missing = check(with_inputs_changed("1", ckpt_name="ltx-2.3-22b-dev.safetensors")).files[0]
    assert missing.state == "missing"
    assert missing.url.startswith("https://huggingface.co/Lightricks/LTX-2.3/resolve/main/")
    assert missing.nodes == ("1",)


def test_a_file_name_can_be_mapped_to_any_path(tmp_path: Path) -> None:
    file = single(tmp_path) / "checkpoints" / "tiny-dev.safetensors"
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html>")
    for path, state in ((file, "here"), (tmp_path / "page.safetensors", "wrong")):
        report = check(two_stage(), names={"dev.safetensors": str(path)})
        assert {one.state for one in report.files if one.name == "dev.safetensors"} == {state}


def test_a_lora_is_compared_with_the_transformer(tmp_path: Path) -> None:
    library = scan([ModelFolder(single(tmp_path))])
    report = check(two_stage(), library, names=NAMES)
    (lora,) = report.loras
    assert (lora.node, lora.conflict) == ("4", "")
    assert lora.matched == lora.total > 0
    assert report.ready
    assert "lora_misses" not in codes(report)


def test_sizes_of_input_images_are_used(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    document = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "ImageScaleBy", "inputs": {"image": ["1", 0], "scale_by": 2.0,
                                                       "upscale_method": "area"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }  # fmt: skip
    report = check(document, inputs=(tmp_path,))
    assert report.outputs[0].size == (600, 400)
    assert report.files[0].state == "here"
    assert check(document).files[0].state == "missing"


def test_unsupported_nodes_have_a_hint_how_to_bypass_them() -> None:
    document = two_stage()
    document["80"] = {"class_type": "DWPreprocessor", "inputs": {}, "_meta": {"title": "my pose"}}
    document["81"] = {"class_type": "PreviewImage", "inputs": {"images": ["80", 0]}}
    report = check(document)
    (one,) = report.unsupported
    assert (one.node, one.title, one.pack) == ("80", "my pose", "comfyui_controlnet_aux")
    assert "26" in one.hint
    document["90"] = {"class_type": "PrimitiveBoolean", "inputs": {"value": True}}
    document["91"] = {"class_type": "EmptyImage", "inputs": {}}
    inputs = {"switch": ["90", 0], "on_true": ["80", 0], "on_false": ["91", 0]}
    document["92"] = {"class_type": "ComfySwitchNode", "inputs": inputs}
    document["81"]["inputs"]["images"] = ["92", 0]
    assert "--set 90.value=false" in check(document).unsupported[0].hint


# --- the command ---------------------------------------------------------------------------------


def run(tmp_path: Path, document: dict[str, Any], *flags: str) -> Any:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(document))
    return CliRunner().invoke(app, ["workflow", "check", str(path), *flags])


def test_the_command_reports_and_its_exit_code_is_the_result(tmp_path: Path) -> None:
    models = single(tmp_path / "models")
    maps = [flag for old, new in NAMES.items() for flag in ("--map", f"{old}={new}")]
    done = run(tmp_path, two_stage(), "--models", str(models), *maps)
    assert done.exit_code == 0, done.output
    for words in (
        "1280x704, 121 frames, 25 fps",
        "stage 2: euler, 3 steps from sigma 0.85",
        "found     checkpoints/dev.safetensors as tiny-dev.safetensors",
        "it can run",
    ):
        assert words in done.stdout
    assert run(tmp_path, two_stage()).exit_code == 3
    broken = run(tmp_path, with_inputs_changed("8", width=1), "--json")
    assert broken.exit_code == 6
    report = json.loads(broken.stdout)
    assert report["problems"][0]["type"] == "value_smaller_than_min"
    assert report["ready"] is False
    fixed = run(tmp_path, with_inputs_changed("8", width=1), "--set", "8.width=640")
    assert fixed.exit_code == 3


@pytest.mark.slow
def test_check_needs_no_torch() -> None:
    code = (
        "import sys, latent_ladder.cli.commands.workflow, latent_ladder.comfyui.analysis.check, "
        "latent_ladder.comfyui.formats.read; "
        "sys.exit(str({'torch', 'av', 'diffusers', 'transformers'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
