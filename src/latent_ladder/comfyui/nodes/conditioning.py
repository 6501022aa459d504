"""Prompts, frame rates, and images as the first frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.decoding import encoded
from latent_ladder.comfyui.nodes.latents import empty_shape
from latent_ladder.comfyui.nodes.node_context import Ask, Meaning
from latent_ladder.comfyui.nodes.resize import resized
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    Images,
    Latent,
    TextEncoderFiles,
    Value,
    VideoVaeFile,
)
from latent_ladder.latents.shapes import PIXELS_PER_LATENT


def prompt(ask: Ask) -> list[Value]:
    """``CLIPTextEncode``: encoded when a sampler needs it, all texts of a sampler at once."""
    clip = ask.get("clip", TextEncoderFiles)
    if clip.loras:
        names = ", ".join(lora.file.path.name for lora, _ in clip.loras)
        raise ask.error(
            f"the text encoder has LoRAs ({names}), which are not put on it here",
            "connect the CLIP of the loader before LoraLoader",
        )
    return [Conditioning(clip, ask.text("text"))]


def zeroed(ask: Ask) -> list[Value]:
    """``ConditioningZeroOut``."""
    return [replace(ask.get("conditioning", Conditioning), zeroed=True)]


def frame_rate(ask: Ask) -> list[Value]:
    """``LTXVConditioning``."""
    rate = ask.number("frame_rate")
    if rate <= 0:
        raise ask.error(f"frame_rate is {rate:g}", "use 24 or 25")
    return [
        replace(ask.get(name, Conditioning), frame_rate=rate) for name in ("positive", "negative")
    ]


def first_frames(ask: Ask, rows: int, cols: int) -> Tensor:
    """The image at a latent's size, encoded: (1, C, F, rows, cols)."""
    images, vae = ask.get("image", Images), ask.get("vae", VideoVaeFile)
    size = (cols * PIXELS_PER_LATENT, rows * PIXELS_PER_LATENT)

    def make() -> dict[str, Tensor]:
        fitted = images.mapped(lambda f: resized(f, size, "bilinear", "center"), size)
        return {"latents": encoded(ask, fitted, vae)}

    return ask.keep("image", make)["latents"]


def _with_first(ask: Ask, latent: Latent, mask: Tensor) -> Latent:
    """The latent with the image over its first frames, which are kept by ``strength``."""
    if latent.video is None:
        raise ask.error("latent is a latent of sound", "connect a video latent")
    frames = first_frames(ask, *latent.video.shape[3:])
    video, mask = latent.video.clone(), mask.clone()
    count = min(frames.shape[2], video.shape[2])
    if video.shape[1] != frames.shape[1]:
        raise ask.error(
            f"latent has {video.shape[1]} channels, the VAE makes {frames.shape[1]}",
            "use the VAE that belongs to the checkpoint",
        )
    video[:, :, :count] = frames[:, :, :count]
    mask[:, :, :count] = 1.0 - ask.number("strength")
    return replace(latent, video=video, video_mask=mask)


def in_place(ask: Ask) -> list[Value]:
    """``LTXVImgToVideoInplace``: a mask that is there counts elsewhere."""
    latent = ask.get("latent", Latent)
    if ask.has("bypass") and ask.flag("bypass"):
        return [latent]
    return [_with_first(ask, latent, latent.full_video_mask())]


def condition_only(ask: Ask) -> list[Value]:
    """``LTXVImgToVideoConditionOnly``: as in place, but an earlier mask is forgotten."""
    latent = ask.get("latent", Latent)
    if ask.has("bypass") and ask.flag("bypass"):
        return [latent]
    plain = replace(latent, video_mask=None)
    return [_with_first(ask, latent, plain.full_video_mask())]


def image_to_video(ask: Ask) -> list[Value]:
    """``LTXVImgToVideo``: an empty latent with the image over its first frames."""
    f, h, w = empty_shape(ask)
    empty = Latent(video=torch.zeros(1, ask.channels, f, h, w))
    latent = _with_first(ask, empty, empty.full_video_mask())
    return [ask.get("positive", Conditioning), ask.get("negative", Conditioning), latent]


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "CLIPTextEncode": Meaning(prompt),
        "ConditioningZeroOut": Meaning(zeroed),
        "LTXVConditioning": Meaning(frame_rate),
        "LTXVImgToVideoInplace": Meaning(in_place),
        "LTXVImgToVideoConditionOnly": Meaning(condition_only),
        "LTXVImgToVideo": Meaning(image_to_video),
    }
)
