"""Small graphs for the pocket model in API format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.selection import Library, model_folders, scan
from latent_ladder.comfyui.formats.api import read_api
from latent_ladder.comfyui.graph import Graph
from latent_ladder.comfyui.runtime.engine import Engine, WorkFolders
from latent_ladder.storage.artifact_store import Store

CHECKPOINT = "pocket-ltx-2.3.safetensors"
PROMPT = "a large plain red circle moving right over blue hills"
Nodes = dict[str, tuple[str, dict[str, Any]]]

MODELS: Nodes = {
    "model": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
    "clip": (
        "LTXAVTextEncoderLoader",
        {"text_encoder": "pocket-gemma-3.safetensors", "ckpt_name": CHECKPOINT},
    ),
    "audio vae": ("LTXVAudioVAELoader", {"ckpt_name": CHECKPOINT}),
    "prompt": ("CLIPTextEncode", {"clip": ["clip", 0], "text": PROMPT}),
    "negative": ("CLIPTextEncode", {"clip": ["clip", 0], "text": "ugly"}),
    "conditioning": (
        "LTXVConditioning",
        {"positive": ["prompt", 0], "negative": ["negative", 0], "frame_rate": 24.0},
    ),
}
LATENTS: Nodes = {
    "video": ("EmptyLTXVLatentVideo", {"width": 64, "height": 64, "length": 9}),
    "audio": (
        "LTXVEmptyLatentAudio",
        {"audio_vae": ["audio vae", 0], "frames_number": 9, "frame_rate": 24.0},
    ),
    "both": ("LTXVConcatAVLatent", {"video_latent": ["video", 0], "audio_latent": ["audio", 0]}),
}
SAMPLING: Nodes = {
    "guider": (
        "CFGGuider",
        {
            "model": ["model", 0],
            "positive": ["conditioning", 0],
            "negative": ["conditioning", 1],
            "cfg": 1.0,
        },
    ),
    "noise": ("RandomNoise", {"noise_seed": 7}),
    "euler": ("KSamplerSelect", {"sampler_name": "euler"}),
    "sigmas": ("ManualSigmas", {"sigmas": "1.0, 0.9, 0.6, 0.3, 0.0"}),
    "sampled": (
        "SamplerCustomAdvanced",
        {
            "noise": ["noise", 0],
            "guider": ["guider", 0],
            "sampler": ["euler", 0],
            "sigmas": ["sigmas", 0],
            "latent_image": ["both", 0],
        },
    ),
    "parts": ("LTXVSeparateAVLatent", {"av_latent": ["sampled", 0]}),
}
CLIP: Nodes = {
    "frames": ("VAEDecode", {"samples": ["parts", 0], "vae": ["model", 2]}),
    "sound": ("LTXVAudioVAEDecode", {"samples": ["parts", 1], "audio_vae": ["audio vae", 0]}),
    "clip file": (
        "CreateVideo", {"images": ["frames", 0], "audio": ["sound", 0], "fps": 24.0}
    ),
    "save": ("SaveVideo", {"video": ["clip file", 0], "filename_prefix": "video/clip"}),
}  # fmt: skip
ONE_STAGE: Nodes = {**MODELS, **LATENTS, **SAMPLING, **CLIP}


def graph(nodes: Nodes) -> Graph:
    """Return a graph from (type, inputs) by node id; links are [id, slot]."""
    return read_api(
        {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
    )


def engine(folder: Path, library: Library | None = None, store: Path | None = None) -> Engine:
    """Return an engine with input, output and temporary folders in ``folder``."""
    folders = WorkFolders(folder / "input", folder / "output", folder / "temp")
    for path in (folders.input, folders.output, folders.temp):
        path.mkdir(exist_ok=True, parents=True)
    found = scan(model_folders(environ={})) if library is None else library
    return Engine(found, Store(store or folder / "store"), folders, device="cpu")
