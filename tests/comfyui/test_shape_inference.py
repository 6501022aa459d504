"""Sizes and frames that ``workflow check`` predicts are those of the saved clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.workflow_graphs import CHECKPOINT, Nodes, engine, graph
from PIL import Image

from latent_ladder.comfyui.analysis.check import check_workflow
from latent_ladder.comfyui.executor import execute
from latent_ladder.comfyui.formats.read import Workflow
from latent_ladder.media.video_reader import probe

MODEL: Nodes = {
    "model": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
    "up": ("LatentUpscaleModelLoader", {"model_name": "pocket-spatial-x2.safetensors"}),
    "empty": ("EmptyLTXVLatentVideo", {"width": 72, "height": 64, "length": 12}),
    "frames": ("VAEDecode", {"samples": ["empty", 0], "vae": ["model", 2]}),
    "image": ("LoadImage", {"image": "a.png"}),
}
RESIZE = "resize_type"
CASES: dict[str, Nodes] = {
    "truncated to latents": {},
    "upsampled": {
        "more": ("LTXVLatentUpsampler",
                 {"samples": ["empty", 0], "upscale_model": ["up", 0], "vae": ["model", 2]}),
        "frames": ("VAEDecode", {"samples": ["more", 0], "vae": ["model", 2]}),
    },
    "upscaled latents": {
        "more": ("LatentUpscaleBy",
                 {"samples": ["empty", 0], "upscale_method": "bilinear", "scale_by": 1.5}),
        "frames": ("VAEDecode", {"samples": ["more", 0], "vae": ["model", 2]}),
    },
    "encoded": {
        "many": ("RepeatImageBatch", {"image": ["image", 0], "amount": 11}),
        "coded": ("VAEEncode", {"pixels": ["many", 0], "vae": ["model", 2]}),
        "frames": ("VAEDecode", {"samples": ["coded", 0], "vae": ["model", 2]}),
    },
    "longer side": {
        "frames": ("ResizeImageMaskNode", {
            "input": ["image", 0], RESIZE: "scale longer dimension", f"{RESIZE}.longer_size": 50,
            "scale_method": "area"}),
    },
    "to a multiple": {
        "frames": ("ResizeImageMaskNode", {
            "input": ["image", 0], RESIZE: "scale to multiple", f"{RESIZE}.multiple": 32,
            "scale_method": "area"}),
    },
    "by half": {
        "frames": ("ImageScaleBy",
                   {"image": ["image", 0], "upscale_method": "lanczos", "scale_by": 0.5}),
    },
    "size of an image": {
        "size": ("GetImageSize", {"image": ["image", 0]}),
        "half": ("ComfyMathExpression", {"expression": "a // 2 * 2", "values.a": ["size", 1]}),
        "frames": ("ImageScale", {
            "image": ["image", 0], "upscale_method": "area", "width": ["half", 1], "height": 40,
            "crop": "center"}),
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_inferred_sizes_and_frames_are_those_of_the_clip(name: str, tmp_path: Path) -> None:
    save: Nodes = {
        "clip": ("CreateVideo", {"images": ["frames", 0], "fps": 8.0}),
        "save": ("SaveVideo", {"video": ["clip", 0], "filename_prefix": "a"}),
    }
    nodes = {**MODEL, **CASES[name], **save}
    work: Any = engine(tmp_path)
    Image.new("RGB", (96, 68), "red").save(work.folders.input / "a.png")
    workflow = graph(nodes)
    (summary,) = check_workflow(Workflow(workflow, {}), work.library, (work.folders.input,)).outputs
    shown = execute(workflow, work)
    info = probe(work.folders.output / shown["save"]["images"][0]["filename"])
    assert (summary.size, summary.frames) == ((info.width, info.height), info.frames)
    assert summary.file == shown["save"]["images"][0]["filename"]
