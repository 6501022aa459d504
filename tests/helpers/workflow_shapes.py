"""Graphs with the structure of the published LTX-2.3 workflows in API format.

``two_stage`` has the nodes of Lightricks' two-stage graph, ``template`` those of ComfyUI's
template after its subgraph is expanded. Sizes, file names and prompts are parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Api = dict[str, Any]

STAGE_1 = "1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"
STAGE_2 = "0.85, 0.7250, 0.4219, 0.0"
NEGATIVE = "pc game, console game, video game, cartoon, childish, ugly"


class Files(NamedTuple):
    """The model files that a graph names."""

    checkpoint: str = "ltx-2.3-22b-dev.safetensors"
    text_encoder: str = "comfy_gemma_3_12B_it.safetensors"
    lora: str = "ltxv/ltx2/ltx-2.3-22b-distilled-lora-384-1.1.safetensors"
    upsampler: str = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"


PUBLISHED = Files()
POCKET = Files(
    "pocket-ltx-2.3.safetensors",
    "pocket-gemma-3.safetensors",
    "pocket-distilled-lora.safetensors",
    "pocket-spatial-x2.safetensors",
)


def api(nodes: dict[str, tuple[str, dict[str, Any]]]) -> Api:
    return {
        name: {"class_type": kind, "inputs": inputs, "_meta": {"title": name}}
        for name, (kind, inputs) in nodes.items()
    }


def models(files: Files, prompt: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": files.checkpoint}),
        "encoder": (
            "LTXAVTextEncoderLoader",
            {
                "text_encoder": files.text_encoder,
                "ckpt_name": files.checkpoint,
                "device": "default",
            },
        ),
        "audio vae": ("LTXVAudioVAELoader", {"ckpt_name": files.checkpoint}),
        "lora": (
            "LoraLoaderModelOnly",
            {"model": ["checkpoint", 0], "lora_name": files.lora, "strength_model": 0.5},
        ),
        "upsampler": ("LatentUpscaleModelLoader", {"model_name": files.upsampler}),
        "positive": ("CLIPTextEncode", {"clip": ["encoder", 0], "text": prompt}),
        "negative": ("CLIPTextEncode", {"clip": ["encoder", 0], "text": NEGATIVE}),
    }


def sampling(
    stage: str, seed: Any, sampler: str, sigmas: str, conditioning: tuple[str, int, int], start: str
) -> dict[str, tuple[str, dict[str, Any]]]:
    node, positive, negative = conditioning
    return {
        f"noise {stage}": ("RandomNoise", {"noise_seed": seed}),
        f"sampler {stage}": ("KSamplerSelect", {"sampler_name": sampler}),
        f"sigmas {stage}": ("ManualSigmas", {"sigmas": sigmas}),
        f"guider {stage}": (
            "CFGGuider",
            {
                "model": ["lora", 0],
                "positive": [node, positive],
                "negative": [node, negative],
                "cfg": 1,
            },
        ),
        f"run {stage}": (
            "SamplerCustomAdvanced",
            {
                "noise": [f"noise {stage}", 0],
                "guider": [f"guider {stage}", 0],
                "sampler": [f"sampler {stage}", 0],
                "sigmas": [f"sigmas {stage}", 0],
                "latent_image": [start, 0],
            },
        ),
        f"parts {stage}": ("LTXVSeparateAVLatent", {"av_latent": [f"run {stage}", 0]}),
    }


def output(decode: tuple[str, dict[str, Any]], fps: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        "frames": decode,
        "sound": (
            "LTXVAudioVAEDecode",
            {"samples": ["parts 2", 1], "audio_vae": ["audio vae", 0]},
        ),
        "clip": ("CreateVideo", {"images": ["frames", 0], "audio": ["sound", 0], "fps": fps}),
        "save": (
            "SaveVideo",
            {"video": ["clip", 0], "filename_prefix": "out", "format": "auto", "codec": "auto"},
        ),
    }


def two_stage(
    files: Files = PUBLISHED,
    size: tuple[int, int] = (960, 544),
    frames: int = 121,
    prompt: str = "a tea ceremony",
    tiles: int = 2,
    bypass: bool = True,
) -> Api:
    """Return a graph like Lightricks' two-stage graph: CFG++ samplers, image off, tiled decode."""
    decode = {"horizontal_tiles": tiles, "vertical_tiles": tiles, "overlap": 6}
    vae = ["checkpoint", 2]
    return api(
        {
            **models(files, prompt),
            "fps": ("PrimitiveFloat", {"value": 24}),
            "count": ("PrimitiveInt", {"value": frames}),
            "whole fps": ("LTXFloatToInt", {"a": ["fps", 0]}),
            "no image": ("PrimitiveBoolean", {"value": bypass}),
            "conditioning": (
                "LTXVConditioning",
                {
                    "positive": ["positive", 0],
                    "negative": ["negative", 0],
                    "frame_rate": ["fps", 0],
                },
            ),
            "picture": ("LoadImage", {"image": "example.png"}),
            "scaled": (
                "ResizeImageMaskNode",
                {
                    "input": ["picture", 0],
                    "resize_type": "scale longer dimension",
                    "resize_type.longer_size": 1536,
                    "scale_method": "lanczos",
                },
            ),
            "prepared": ("LTXVPreprocess", {"image": ["scaled", 0], "img_compression": 18}),
            "empty": (
                "EmptyLTXVLatentVideo",
                {"width": size[0], "height": size[1], "length": ["count", 0], "batch_size": 1},
            ),
            "image 1": (
                "LTXVImgToVideoConditionOnly",
                {
                    "vae": vae,
                    "image": ["prepared", 0],
                    "latent": ["empty", 0],
                    "strength": 0.7,
                    "bypass": ["no image", 0],
                },
            ),
            "silence": (
                "LTXVEmptyLatentAudio",
                {
                    "audio_vae": ["audio vae", 0],
                    "frames_number": ["count", 0],
                    "frame_rate": ["whole fps", 0],
                    "batch_size": 1,
                },
            ),
            "start 1": (
                "LTXVConcatAVLatent",
                {"video_latent": ["image 1", 0], "audio_latent": ["silence", 0]},
            ),
            **sampling(
                "1", 43, "euler_ancestral_cfg_pp", STAGE_1, ("conditioning", 0, 1), "start 1"
            ),
            "larger": (
                "LTXVLatentUpsampler",
                {"samples": ["parts 1", 0], "upscale_model": ["upsampler", 0], "vae": vae},
            ),
            "image 2": (
                "LTXVImgToVideoConditionOnly",
                {
                    "vae": vae,
                    "image": ["scaled", 0],
                    "latent": ["larger", 0],
                    "strength": 1,
                    "bypass": ["no image", 0],
                },
            ),
            "start 2": (
                "LTXVConcatAVLatent",
                {"video_latent": ["image 2", 0], "audio_latent": ["parts 1", 1]},
            ),
            **sampling("2", 42, "euler_cfg_pp", STAGE_2, ("conditioning", 0, 1), "start 2"),
            **output(
                ("LTXVTiledVAEDecode", {"vae": vae, "latents": ["parts 2", 0], **decode}),
                ["fps", 0],
            ),
        }
    )


def template(
    files: Files = PUBLISHED,
    size: tuple[int, int] = (1280, 720),
    seconds: int = 5,
    fps: int = 25,
    prompt: str = "a tea ceremony",
    enhance: bool = False,
) -> Api:
    """Return a graph like ComfyUI's template: sizes by arithmetic, the prompt through a switch."""
    vae = ["checkpoint", 2]
    return api(
        {
            **models(files, ["prompt", 0]),
            "width": ("PrimitiveInt", {"value": size[0]}),
            "height": ("PrimitiveInt", {"value": size[1]}),
            "seconds": ("PrimitiveInt", {"value": seconds}),
            "rate": ("PrimitiveInt", {"value": fps}),
            "half width": _math("a/2", ["width", 0]),
            "half height": _math("a/2", ["height", 0]),
            "fps": _math("a", ["rate", 0]),
            "length": _math("a * b + 1", ["seconds", 0], ["rate", 0]),
            "wording": ("PrimitiveStringMultiline", {"value": prompt}),
            "enhanced": (
                "TextGenerateLTX2Prompt",
                {"clip": ["encoder", 0], "prompt": ["wording", 0], "max_length": 2048},
            ),
            "enhance": ("PrimitiveBoolean", {"value": enhance}),
            "prompt": (
                "ComfySwitchNode",
                {"on_false": ["wording", 0], "on_true": ["enhanced", 0], "switch": ["enhance", 0]},
            ),
            "conditioning": (
                "LTXVConditioning",
                {
                    "positive": ["positive", 0],
                    "negative": ["negative", 0],
                    "frame_rate": ["fps", 0],
                },
            ),
            "empty": (
                "EmptyLTXVLatentVideo",
                {
                    "width": ["half width", 1],
                    "height": ["half height", 1],
                    "length": ["length", 1],
                    "batch_size": 1,
                },
            ),
            "silence": (
                "LTXVEmptyLatentAudio",
                {
                    "audio_vae": ["audio vae", 0],
                    "frames_number": ["length", 1],
                    "frame_rate": ["fps", 1],
                    "batch_size": 1,
                },
            ),
            "start 1": (
                "LTXVConcatAVLatent",
                {"video_latent": ["empty", 0], "audio_latent": ["silence", 0]},
            ),
            **sampling("1", 10, "euler", STAGE_1, ("conditioning", 0, 1), "start 1"),
            "cut": (
                "LTXVCropGuides",
                {
                    "positive": ["conditioning", 0],
                    "negative": ["conditioning", 1],
                    "latent": ["parts 1", 0],
                },
            ),
            "larger": (
                "LTXVLatentUpsampler",
                {"samples": ["parts 1", 0], "upscale_model": ["upsampler", 0], "vae": vae},
            ),
            "start 2": (
                "LTXVConcatAVLatent",
                {"video_latent": ["larger", 0], "audio_latent": ["parts 1", 1]},
            ),
            **sampling("2", 42, "euler", STAGE_2, ("cut", 0, 1), "start 2"),
            **output(
                (
                    "VAEDecodeTiled",
                    {
                        "samples": ["parts 2", 0],
                        "vae": vae,
                        "tile_size": 768,
                        "overlap": 64,
                        "temporal_size": 4096,
                        "temporal_overlap": 4,
                    },
                ),
                ["fps", 0],
            ),
        }
    )


def _math(expression: str, *names: list[Any]) -> tuple[str, dict[str, Any]]:
    values = {f"values.{letter}": link for letter, link in zip("abc", names, strict=False)}
    return "ComfyMathExpression", {"expression": expression, **values}
