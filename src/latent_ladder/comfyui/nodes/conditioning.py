"""Conditioning nodes: prompts, frame rate, and images as the first frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.checkpoints.text_loras import gemma_modules
from latent_ladder.comfyui.nodes.decoding import encode_images
from latent_ladder.comfyui.nodes.latents import empty_shape
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.resize import resize_frames
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    Images,
    Latent,
    TextEncoderFiles,
    Value,
    VideoVaeFile,
)
from latent_ladder.latents.shapes import PIXELS_PER_LATENT


def encode_prompt(ctx: NodeContext) -> list[Value]:
    """``CLIPTextEncode``: a prompt, which is encoded when a sampler needs it."""
    clip = ctx.get("clip", TextEncoderFiles)
    changed = [lora.file.path.name for lora, _ in clip.loras if gemma_modules(lora)]
    if changed:
        raise ctx.error(
            f"LoRAs that change Gemma itself ({', '.join(changed)}) are not supported",
            "connect the CLIP of the loader before LoraLoader",
        )
    return [Conditioning(clip, ctx.text("text"))]


def zero_out(ctx: NodeContext) -> list[Value]:
    """``ConditioningZeroOut``: a conditioning of zeros."""
    return [replace(ctx.get("conditioning", Conditioning), zeroed=True)]


def set_frame_rate(ctx: NodeContext) -> list[Value]:
    """``LTXVConditioning``: both conditionings with a frame rate."""
    rate = ctx.number("frame_rate")
    if rate <= 0:
        raise ctx.error(f"frame_rate is {rate:g}", "use 24 or 25")
    return [
        replace(ctx.get(name, Conditioning), frame_rate=rate) for name in ("positive", "negative")
    ]


def encode_first_frames(ctx: NodeContext, rows: int, cols: int) -> Tensor:
    """Encode the image input at the size of a latent: (1, C, F, rows, cols)."""
    images, vae = ctx.get("image", Images), ctx.get("vae", VideoVaeFile)
    size = (cols * PIXELS_PER_LATENT, rows * PIXELS_PER_LATENT)

    def compute() -> dict[str, Tensor]:
        fitted = images.map(lambda f: resize_frames(f, size, "bilinear", "center"), size)
        return {"latents": encode_images(ctx, fitted, vae)}

    return ctx.load_or_compute("image", compute)["latents"]


def _replace_first_frames(ctx: NodeContext, latent: Latent, mask: Tensor) -> Latent:
    """Return the latent with the image as its first frames, masked by 1 - ``strength``."""
    if latent.video is None:
        raise ctx.error("latent is an audio latent", "connect a video latent")
    frames = encode_first_frames(ctx, *latent.video.shape[3:])
    video, mask = latent.video.clone(), mask.clone()
    count = min(frames.shape[2], video.shape[2])
    if video.shape[1] != frames.shape[1]:
        raise ctx.error(
            f"latent has {video.shape[1]} channels, the VAE makes {frames.shape[1]}",
            "use the VAE that belongs to the checkpoint",
        )
    video[:, :, :count] = frames[:, :, :count]
    mask[:, :, :count] = 1.0 - ctx.number("strength")
    return replace(latent, video=video, video_mask=mask)


def image_in_place(ctx: NodeContext) -> list[Value]:
    """``LTXVImgToVideoInplace``: the image as first frames; the rest of the mask is unchanged."""
    latent = ctx.get("latent", Latent)
    if ctx.has("bypass") and ctx.boolean("bypass"):
        return [latent]
    return [_replace_first_frames(ctx, latent, latent.full_video_mask())]


def condition_only(ctx: NodeContext) -> list[Value]:
    """``LTXVImgToVideoConditionOnly``: the image as first frames; an earlier mask is dropped."""
    latent = ctx.get("latent", Latent)
    if ctx.has("bypass") and ctx.boolean("bypass"):
        return [latent]
    unmasked = replace(latent, video_mask=None)
    return [_replace_first_frames(ctx, latent, unmasked.full_video_mask())]


def image_to_video(ctx: NodeContext) -> list[Value]:
    """``LTXVImgToVideo``: an empty latent with the image as its first frames."""
    f, h, w = empty_shape(ctx)
    empty = Latent(video=torch.zeros(1, ctx.channels, f, h, w))
    latent = _replace_first_frames(ctx, empty, empty.full_video_mask())
    return [ctx.get("positive", Conditioning), ctx.get("negative", Conditioning), latent]


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "CLIPTextEncode": NodeFunction(encode_prompt),
        "ConditioningZeroOut": NodeFunction(zero_out),
        "LTXVConditioning": NodeFunction(set_frame_rate),
        "LTXVImgToVideoInplace": NodeFunction(image_in_place),
        "LTXVImgToVideoConditionOnly": NodeFunction(condition_only),
        "LTXVImgToVideo": NodeFunction(image_to_video),
    }
)
