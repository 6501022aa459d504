"""Definitions of loader nodes: checkpoints, LoRAs, text encoders, VAEs, upscalers."""

from __future__ import annotations

from latent_ladder.comfyui.node_defs.builders import (
    KJ,
    LTXV,
    choice,
    file,
    flag,
    integer,
    link,
    node,
    number,
)
from latent_ladder.comfyui.node_defs.schema import ANY

GGUF = "ComfyUI-GGUF"
CLIP_TYPES = (
    "stable_diffusion", "stable_cascade", "sd3", "stable_audio", "mochi", "ltxv", "pixart",
    "cosmos", "lumina2", "wan", "hidream", "chroma", "ace", "omnigen2", "qwen_image",
    "hunyuan_image", "flux2", "ovis", "longcat_image",
)  # fmt: skip
DUAL_CLIP_TYPES = (
    "sdxl", "sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image", "hunyuan_video_15",
    "kandinsky5", "kandinsky5_image", "ltxv", "newbie", "ace",
)  # fmt: skip
DEVICES = ("default", "cpu")
DEQUANT = ("default", "target", "float32", "float16", "bfloat16")
DEPENDENCIES = link("dependencies", ANY, required=False)
"""An input that only delays loading until another node has run."""

NODE_DEFS = (
    node(
        "CheckpointLoaderSimple",
        "Load Checkpoint",
        "model/loaders",
        [file("ckpt_name", "checkpoints")],
        "MODEL",
        "CLIP",
        "VAE",
    ),
    node(
        "UNETLoader",
        "Load Diffusion Model",
        "model/loaders",
        [
            file("unet_name", "diffusion_models"),
            choice("weight_dtype", ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")),
        ],
        "MODEL",
    ),
    node(
        "UnetLoaderGGUF",
        "Unet Loader (GGUF)",
        "bootleg",
        [file("unet_name", "diffusion_models")],
        "MODEL",
        pack=GGUF,
    ),
    node(
        "UnetLoaderGGUFAdvanced",
        "Unet Loader (GGUF/Advanced)",
        "bootleg",
        [
            file("unet_name", "diffusion_models"),
            choice("dequant_dtype", DEQUANT),
            choice("patch_dtype", DEQUANT),
            flag("patch_on_device"),
        ],
        "MODEL",
        pack=GGUF,
    ),
    node(
        "LoraLoaderModelOnly",
        "Load LoRA (Model Only)",
        "model/loaders",
        [
            link("model", "MODEL"),
            file("lora_name", "loras"),
            number("strength_model", 1.0, -100, 100),
        ],
        "MODEL",
    ),
    node(
        "LoraLoader",
        "Load LoRA (Model and CLIP)",
        "model/loaders",
        [
            link("model", "MODEL"),
            link("clip", "CLIP"),
            file("lora_name", "loras"),
            number("strength_model", 1.0, -100, 100),
            number("strength_clip", 1.0, -100, 100),
        ],
        "MODEL",
        "CLIP",
    ),
    node(
        "LTXICLoRALoaderModelOnly",
        "IC-LoRA Loader Model Only",
        "Lightricks/LTXV/Loaders",
        [
            link("model", "MODEL"),
            file("lora_name", "loras"),
            number("strength_model", 1.0, -100, 100),
        ],
        "MODEL model",
        "FLOAT latent_downscale_factor",
        pack=LTXV,
    ),
    node(
        "LTXAVTextEncoderLoader",
        "Load LTXV Audio Text Encoder",
        "model/loaders",
        [
            file("text_encoder", "text_encoders"),
            file("ckpt_name", "checkpoints"),
            choice("device", DEVICES),
        ],
        "CLIP",
    ),
    node(
        "LTXVGemmaCLIPModelLoader",
        "Gemma 3 Model Loader",
        "lightricks/LTXV",
        [
            file("gemma_path", "text_encoders"),
            file("ltxv_path", "checkpoints"),
            integer("max_length", 1024, 16, 131072, 8),
        ],
        "CLIP clip",
        pack=LTXV,
    ),
    node(
        "CLIPLoader",
        "Load CLIP",
        "model/loaders",
        [
            file("clip_name", "text_encoders"),
            choice("type", CLIP_TYPES),
            choice("device", DEVICES, required=False),
        ],
        "CLIP",
    ),
    node(
        "DualCLIPLoader",
        "Load CLIP (Dual)",
        "model/loaders",
        [
            file("clip_name1", "text_encoders"),
            file("clip_name2", "text_encoders"),
            choice("type", DUAL_CLIP_TYPES),
            choice("device", DEVICES, required=False),
        ],
        "CLIP",
    ),
    node(
        "CLIPLoaderGGUF",
        "CLIPLoader (GGUF)",
        "bootleg",
        [file("clip_name", "text_encoders"), choice("type", CLIP_TYPES)],
        "CLIP",
        pack=GGUF,
    ),
    node(
        "DualCLIPLoaderGGUF",
        "DualCLIPLoader (GGUF)",
        "bootleg",
        [
            file("clip_name1", "text_encoders"),
            file("clip_name2", "text_encoders"),
            choice("type", DUAL_CLIP_TYPES),
        ],
        "CLIP",
        pack=GGUF,
    ),
    node("VAELoader", "Load VAE", "model/loaders", [file("vae_name", "vae")], "VAE"),
    node(
        "VAELoaderKJ",
        "VAELoader KJ",
        "KJNodes/vae",
        [
            file("vae_name", "vae"),
            choice("device", ("main_device", "cpu")),
            choice("weight_dtype", ("bf16", "fp16", "fp32")),
        ],
        "VAE",
        pack=KJ,
    ),
    node(
        "LTXVAudioVAELoader",
        "Load LTXV Audio VAE",
        "model/loaders",
        [file("ckpt_name", "vae,checkpoints")],
        "VAE Audio VAE",
    ),
    node(
        "LatentUpscaleModelLoader",
        "Load Latent Upscale Model",
        "model/loaders",
        [file("model_name", "latent_upscale_models")],
        "LATENT_UPSCALE_MODEL",
    ),
    node(
        "ModelPatchLoader",
        "Load Model Patch",
        "model/patch",
        [file("name", "model_patches")],
        "MODEL_PATCH",
    ),
    node(
        "UpscaleModelLoader",
        "Load Upscale Model",
        "model/loaders",
        [file("model_name", "upscale_models")],
        "UPSCALE_MODEL",
    ),
    node(
        "LowVRAMCheckpointLoader",
        "Low VRAM Checkpoint Loader",
        "LTXV/loaders",
        [file("ckpt_name", "checkpoints"), DEPENDENCIES],
        "MODEL",
        "CLIP",
        "VAE",
        pack=LTXV,
    ),
    node(
        "LowVRAMAudioVAELoader",
        "Low VRAM Audio VAE Loader",
        "LTXV/loaders",
        [file("ckpt_name", "checkpoints"), DEPENDENCIES],
        "VAE audio_vae",
        pack=LTXV,
    ),
    node(
        "LowVRAMLatentUpscaleModelLoader",
        "Low VRAM Latent Upscale Model Loader",
        "LTXV/loaders",
        [file("model_name", "latent_upscale_models"), DEPENDENCIES],
        "LATENT_UPSCALE_MODEL",
        pack=LTXV,
    ),
)
