"""Definitions of conditioning nodes: prompts, frame rate, images, guides, reference voices."""

from __future__ import annotations

from latent_ladder.comfyui.node_defs.builders import (
    CROPS,
    LTXV,
    MAX_SEED,
    MAX_SIDE,
    choice,
    dynamic_combo,
    flag,
    integer,
    link,
    node,
    number,
    text,
)

POSITIVE = link("positive", "CONDITIONING")
NEGATIVE = link("negative", "CONDITIONING")
CONDITIONING_PAIR = ("CONDITIONING positive", "CONDITIONING negative")
GUIDE_OUTPUTS = (*CONDITIONING_PAIR, "LATENT latent")
VAE = link("vae", "VAE")
LATENT = link("latent", "LATENT")
IMAGE = link("image", "IMAGE")
ATTENTION_MASK = link("attention_mask", "MASK", required=False)
FRAME = integer("frame_idx", 0, -9999, 9999)
STRENGTH = number("strength", 1.0, 0, 1)
SIZE = (
    integer("width", 768, 64, MAX_SIDE, 32),
    integer("height", 512, 64, MAX_SIDE, 32),
    integer("length", 97, 9, MAX_SIDE, 8),
    integer("batch_size", 1, 1, 4096),
)
LAZY_IMAGE = frozenset({"image"})
"""Inputs that a node with ``bypass`` on does not read."""
IC_GUIDE = (
    POSITIVE,
    NEGATIVE,
    VAE,
    LATENT,
    IMAGE,
    FRAME,
    STRENGTH,
    number("latent_downscale_factor", 1.0, 1, 10, 1),
    choice("crop", CROPS),
    flag("use_tiled_encode"),
    integer("tile_size", 256, 64, 512, 32),
    integer("tile_overlap", 64, 16, 256, 16),
)

PROMPTS = (
    node(
        "CLIPTextEncode",
        "CLIP Text Encode (Prompt)",
        "model/conditioning",
        [text("text", multiline=True), link("clip", "CLIP")],
        "CONDITIONING",
    ),
    node(
        "ConditioningZeroOut",
        "ConditioningZeroOut",
        "model/conditioning",
        [link("conditioning", "CONDITIONING")],
        "CONDITIONING",
    ),
    node(
        "TextGenerateLTX2Prompt",
        "Generate LTX2 Prompt",
        "text",
        [
            link("clip", "CLIP"),
            text("prompt", multiline=True),
            link("image", "IMAGE", required=False),
            link("video", "IMAGE", required=False),
            link("audio", "AUDIO", required=False),
            integer("max_length", 2048, 1, 32768),
            dynamic_combo(
                "sampling_mode",
                {
                    "on": [
                        number("sampling_mode.temperature", 0.7, 0.01, 2, 0.000001),
                        integer("sampling_mode.top_k", 64, 0, 1000),
                        number("sampling_mode.top_p", 0.95, 0, 1),
                        number("sampling_mode.min_p", 0.05, 0, 1),
                        number("sampling_mode.repetition_penalty", 1.05, 0, 5),
                        # inside a dynamic combo no control widget follows a seed
                        integer("sampling_mode.seed", 0, 0, MAX_SEED),
                        number("sampling_mode.presence_penalty", 0.0, 0, 5, required=False),
                    ],
                    "off": [],
                },
            ),
            flag("thinking", required=False),
            flag("use_default_template", True, required=False),
            choice("mtp", ("auto", "off", "2", "3", "4", "5"), required=False),
            link("system_prompt", "STRING", required=False),
        ],
        "STRING generated_text",
        "STRING thinking",
    ),
    node(
        "GemmaAPITextEncode",
        "Gemma API Text Encode",
        "Lightricks/LTXV/Conditioning",
        [
            text("api_key"),
            text("prompt", multiline=True),
            flag("enhance_prompt", True),
            choice("ckpt_name", (), ""),
        ],
        "CONDITIONING conditioning",
        pack=LTXV,
        unsupported_reason="it sends the prompt to a remote service: use CLIPTextEncode",
    ),
)

IMAGES = (
    node(
        "LTXVConditioning",
        "LTXVConditioning",
        "model/conditioning/ltxv",
        [POSITIVE, NEGATIVE, number("frame_rate", 25.0, 0, 1000)],
        *CONDITIONING_PAIR,
    ),
    node(
        "LTXVImgToVideo",
        "LTXVImgToVideo",
        "model/conditioning/ltxv",
        [POSITIVE, NEGATIVE, VAE, IMAGE, *SIZE, STRENGTH],
        *GUIDE_OUTPUTS,
    ),
    node(
        "LTXVImgToVideoInplace",
        "LTXVImgToVideoInplace",
        "model/conditioning/ltxv",
        [VAE, IMAGE, LATENT, STRENGTH, flag("bypass")],
        "LATENT latent",
        lazy=LAZY_IMAGE,
    ),
    node(
        "LTXVImgToVideoConditionOnly",
        "LTXV Img To Video Condition Only",
        "conditioning/video_models",
        [VAE, IMAGE, LATENT, STRENGTH, flag("bypass", required=False)],
        "LATENT latent",
        lazy=LAZY_IMAGE,
        pack=LTXV,
    ),
    node(
        "LTXVPreprocess",
        "LTXV Preprocess",
        "video/preprocessors",
        [IMAGE, integer("img_compression", 35, 0, 100)],
        "IMAGE output_image",
    ),
)

GUIDES = (
    node(
        "LTXVAddGuide",
        "LTXVAddGuide",
        "model/conditioning/ltxv",
        [
            POSITIVE,
            NEGATIVE,
            VAE,
            LATENT,
            IMAGE,
            FRAME,
            number("strength", 1.0, 0, 10),
            ATTENTION_MASK,
            link("iclora_parameters", "IC_LORA_PARAMETERS", required=False),
        ],
        *GUIDE_OUTPUTS,
    ),
    node(
        "LTXVAddLatentGuide",
        "LTXV Add Latent Guide",
        "model/conditioning/ltxv",
        [
            POSITIVE,
            NEGATIVE,
            VAE,
            LATENT,
            link("guiding_latent", "LATENT"),
            integer("latent_idx", 0, -9999, 9999),
            STRENGTH,
            ATTENTION_MASK,
        ],
        *GUIDE_OUTPUTS,
    ),
    node(
        "LTXVAddGeneratedKeyframes",
        "LTXV Add Generated Keyframes",
        "model/conditioning/ltxv",
        [
            POSITIVE,
            NEGATIVE,
            VAE,
            LATENT,
            integer("interval_frames", 24, 1, 1024, required=False),
            link("keyframes", "LATENT", required=False),
            text("frame_indices", required=False),
        ],
        *GUIDE_OUTPUTS,
    ),
    node(
        "LTXVSeparateGeneratedKeyframes",
        "LTXV Separate Generated Keyframes",
        "model/conditioning/ltxv",
        [POSITIVE, NEGATIVE, LATENT, flag("keyframes_to_batch")],
        *GUIDE_OUTPUTS,
        "LATENT keyframes",
    ),
    node(
        "LTXVGeneratedKeyframesToGuides",
        "LTXV Generated Keyframes to Guides",
        "model/conditioning/ltxv",
        [
            POSITIVE,
            NEGATIVE,
            VAE,
            LATENT,
            link("keyframes", "LATENT"),
            number("strength", 1.0, 0, 10),
            text("override_frame_indices", required=False),
        ],
        *GUIDE_OUTPUTS,
    ),
    node("LTXVFreezeLatent", "LTXV Freeze Latent", "model/latent/ltxv", [LATENT], "LATENT latent"),
    node(
        "LTXVDurationPredictor",
        "LTXV Duration Predictor",
        "model/conditioning/ltxv",
        [
            link("model", "MODEL"),
            POSITIVE,
            link("duration_head", "MODEL_PATCH"),
            number("frame_rate", 24.0, 1, 120),
            number("min_seconds", 1.0, 0.5, 120, 0.1),
            number("max_seconds", 20.0, 0.5, 120, 0.1),
        ],
        "INT num_frames",
        "FLOAT seconds",
    ),
    node(
        "LTXVCropGuides",
        "LTXVCropGuides",
        "model/conditioning/ltxv",
        [POSITIVE, NEGATIVE, LATENT],
        *GUIDE_OUTPUTS,
    ),
    node(
        "GetICLoRAParameters",
        "Get IC-LoRA Parameters",
        "model/conditioning/ltxv",
        [link("iclora_model", "MODEL")],
        "IC_LORA_PARAMETERS iclora_parameters",
    ),
    node(
        "LTXAddVideoICLoRAGuide",
        "Add Video IC-LoRA Guide",
        "Lightricks/LTXV/Guidance",
        IC_GUIDE,
        *GUIDE_OUTPUTS,
        pack=LTXV,
    ),
    node(
        "LTXAddVideoICLoRAGuideAdvanced",
        "Add Video IC-LoRA Guide Advanced",
        "Lightricks/IC-LoRA",
        [*IC_GUIDE, number("attention_strength", 1.0, 0, 1), ATTENTION_MASK],
        *GUIDE_OUTPUTS,
        pack=LTXV,
    ),
)

VOICES = (
    node(
        "LTXVReferenceAudio",
        "LTXV Reference Audio (ID-LoRA)",
        "model/conditioning/ltxv",
        [
            link("model", "MODEL"),
            POSITIVE,
            NEGATIVE,
            link("reference_audio", "AUDIO"),
            link("audio_vae", "VAE"),
            number("identity_guidance_scale", 3.0, 0, 100),
            number("start_percent", 0.0, 0, 1, 0.001),
            number("end_percent", 1.0, 0, 1, 0.001),
        ],
        "MODEL",
        *CONDITIONING_PAIR,
    ),
    node(
        "LTXVSetAudioRefTokens",
        "Set Audio Ref Tokens",
        "Lightricks/IC-LoRA",
        [POSITIVE, NEGATIVE, link("audio_latent", "LATENT")],
        *CONDITIONING_PAIR,
        "LATENT frozen_audio",
        pack=LTXV,
    ),
)

NODE_DEFS = (*PROMPTS, *IMAGES, *GUIDES, *VOICES)
