"""Definitions of latent nodes: create, join, mask, upscale, normalise, encode, decode, save."""

from __future__ import annotations

from latent_ladder.comfyui.node_defs.builders import (
    CROPS,
    LTXV,
    MAX_SIDE,
    choice,
    file,
    flag,
    integer,
    link,
    node,
    number,
    seed,
    text,
)
from latent_ladder.comfyui.node_defs.schema import Input

LATENT_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
SAMPLES = link("samples", "LATENT")
LATENTS = link("latents", "LATENT")
VAE = link("vae", "VAE")
AUDIO_VAE = link("audio_vae", "VAE")
TEMPORAL_TILES = (
    integer("temporal_size", 64, 8, 4096, 4),
    integer("temporal_overlap", 8, 4, 4096, 4),
)
WORKING = (
    choice("working_device", ("cpu", "auto"), "auto", required=False),
    choice("working_dtype", ("float16", "float32", "auto"), "auto", required=False),
)
STATS = (
    number("target_mean", 0.0, -10, 10),
    number("target_std", 1.0, 0.01, 10),
    number("percentile", 95.0, 50, 100, 0.1),
)

BASIC = (
    node(
        "EmptyLTXVLatentVideo",
        "Empty LTXV Latent Video",
        "model/latent/ltxv",
        [
            integer("width", 768, 64, MAX_SIDE, 32),
            integer("height", 512, 64, MAX_SIDE, 32),
            integer("length", 97, 1, MAX_SIDE, 8),
            integer("batch_size", 1, 1, 4096),
        ],
        "LATENT",
    ),
    node(
        "LTXVEmptyLatentAudio",
        "Empty LTXV Latent Audio",
        "model/latent/ltxv",
        [
            integer("frames_number", 97, 1, 1000),
            # it took whole numbers only until spring 2026
            Input("frame_rate", "FLOAT,INT", 25.0, 1, 1000, 0.01),
            integer("batch_size", 1, 1, 4096),
            AUDIO_VAE,
        ],
        "LATENT Latent",
    ),
    node(
        "LTXVConcatAVLatent",
        "Concat AV Latent",
        "model/latent/ltxv",
        [link("video_latent", "LATENT"), link("audio_latent", "LATENT")],
        "LATENT latent",
    ),
    node(
        "LTXVSeparateAVLatent",
        "Separate AV Latent",
        "model/latent/ltxv",
        [link("av_latent", "LATENT")],
        "LATENT video_latent",
        "LATENT audio_latent",
    ),
    node(
        "SetLatentNoiseMask",
        "Set Latent Noise Mask",
        "latent/inpaint",
        [SAMPLES, link("mask", "MASK")],
        "LATENT",
    ),
    node(
        "LTXVAudioOnlyModel",
        "LTXV Audio Only Model",
        "Lightricks/audio",
        [link("model", "MODEL")],
        "MODEL model",
        pack=LTXV,
    ),
    node(
        "LTXVAudioOnlyEmptyVideoLatent",
        "LTXV Audio Only Empty Video Latent",
        "Lightricks/audio",
        [],
        "LATENT latent",
        pack=LTXV,
    ),
    node(
        "SaveLatent",
        "Save Latent",
        "latent",
        [SAMPLES, text("filename_prefix", "latents/ComfyUI")],
        is_output=True,
    ),
    node("LoadLatent", "Load Latent", "latent", [file("latent", "input")], "LATENT"),
)

TRANSFORMS = (
    node(
        "LTXVLatentUpsampler",
        "LTXV Latent Upsampler",
        "latent/video",
        [SAMPLES, link("upscale_model", "LATENT_UPSCALE_MODEL"), VAE],
        "LATENT",
    ),
    node(
        "LatentUpscale",
        "Upscale Latent",
        "latent",
        [
            SAMPLES,
            choice("upscale_method", LATENT_METHODS),
            integer("width", 512, 0, MAX_SIDE, 8),
            integer("height", 512, 0, MAX_SIDE, 8),
            choice("crop", CROPS),
        ],
        "LATENT",
    ),
    node(
        "LatentUpscaleBy",
        "Upscale Latent By",
        "latent",
        [SAMPLES, choice("upscale_method", LATENT_METHODS), number("scale_by", 1.5, 0.01, 8)],
        "LATENT",
    ),
    node(
        "LTXVAdainLatent",
        "LTXV Adain Latent",
        "Lightricks/LTXV/Latent",
        [
            LATENTS,
            link("reference", "LATENT"),
            number("factor", 1.0, -10, 10),
            flag("per_frame", required=False),
        ],
        "LATENT",
        pack=LTXV,
    ),
    node(
        "LTXVStatNormLatent",
        "LTXV Stat Norm Latent",
        "Lightricks/LTXV/Latent",
        [LATENTS, *STATS, number("factor", 1.0, -10, 10), flag("clip_outliers")],
        "LATENT",
        pack=LTXV,
    ),
    node(
        "LTXVPerStepAdainPatcher",
        "LTXV Per Step Adain Patcher",
        "Lightricks/LTXV/Model Patches",
        [
            link("model", "MODEL"),
            text("factors", "0.9, 0.75, 0.0"),
            link("reference", "LATENT"),
            flag("per_frame", required=False),
        ],
        "MODEL",
        pack=LTXV,
    ),
    node(
        "LTXVPerStepStatNormPatcher",
        "LTXV Per Step Stat Norm Patcher",
        "Lightricks/LTXV/Model Patches",
        [link("model", "MODEL"), text("factors", "0.9, 0.75, 0.0"), *STATS, flag("clip_outliers")],
        "MODEL",
        pack=LTXV,
    ),
    node(
        "LTXVSelectLatents",
        "LTXV Select Latents",
        "latent/video",
        [SAMPLES, integer("start_index", 0, -9999, 9999), integer("end_index", -1, -9999, 9999)],
        "LATENT",
        pack=LTXV,
    ),
    node(
        "LTXVAddLatents",
        "LTXV Add Latents",
        "latent/video",
        [link("latents1", "LATENT"), link("latents2", "LATENT")],
        "LATENT",
        pack=LTXV,
    ),
)

VAE_NODES = (
    node("VAEDecode", "VAE Decode", "latent", [SAMPLES, VAE], "IMAGE"),
    node(
        "VAEDecodeTiled",
        "VAE Decode (Tiled)",
        "latent",
        [
            SAMPLES,
            VAE,
            integer("tile_size", 512, 64, 4096, 32),
            integer("overlap", 64, 0, 4096, 32),
            *TEMPORAL_TILES,
        ],
        "IMAGE",
    ),
    node("VAEEncode", "VAE Encode", "latent", [link("pixels", "IMAGE"), VAE], "LATENT"),
    node(
        "VAEEncodeTiled",
        "VAE Encode (Tiled)",
        "latent",
        [
            link("pixels", "IMAGE"),
            VAE,
            integer("tile_size", 512, 64, 4096, 64),
            integer("overlap", 64, 0, 4096, 32),
            *TEMPORAL_TILES,
        ],
        "LATENT",
    ),
    node(
        "LTXVTiledVAEDecode",
        "LTXV Tiled VAE Decode",
        "Lightricks/LTXV/Latent",
        [
            VAE,
            LATENTS,
            integer("horizontal_tiles", 1, 1, 6),
            integer("vertical_tiles", 1, 1, 6),
            integer("overlap", 1, 1, 8),
            flag("last_frame_fix"),
            *WORKING,
        ],
        "IMAGE image",
        pack=LTXV,
    ),
    node(
        "LTXVSpatioTemporalTiledVAEDecode",
        "LTXV Spatio Temporal Tiled VAE Decode",
        "Lightricks/LTXV/Latent",
        [
            VAE,
            LATENTS,
            integer("spatial_tiles", 4, 1, 8),
            integer("spatial_overlap", 1, 0, 8),
            integer("temporal_tile_length", 16, 2, 1000),
            integer("temporal_overlap", 1, 0, 8),
            flag("last_frame_fix"),
            *WORKING,
        ],
        "IMAGE image",
        pack=LTXV,
    ),
    node(
        "Set VAE Decoder Noise",
        "Set VAE Decoder Noise",
        "Lightricks/LTXV/Latent",
        [
            VAE,
            number("timestep", 0.05, 0, 1, 0.001),
            number("scale", 0.025, 0, 1, 0.001),
            seed("seed", 42),
        ],
        "VAE",
        pack=LTXV,
    ),
    node(
        "LTXVAudioVAEDecode",
        "LTXV Audio VAE Decode",
        "model/latent/ltxv",
        [SAMPLES, AUDIO_VAE],
        "AUDIO Audio",
    ),
    node(
        "LTXVAudioVAEEncode",
        "LTXV Audio VAE Encode",
        "model/latent/ltxv",
        [link("audio", "AUDIO"), AUDIO_VAE],
        "LATENT Audio Latent",
    ),
    node(
        "VAEEncodeAudio",
        "VAE Encode Audio",
        "model/latent",
        [link("audio", "AUDIO"), VAE],
        "LATENT",
    ),
    node("VAEDecodeAudio", "VAE Decode Audio", "model/latent", [SAMPLES, VAE], "AUDIO"),
)

NODE_DEFS = (*BASIC, *TRANSFORMS, *VAE_NODES)
